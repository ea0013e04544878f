"""Pictures for captions: sampling of codes, re-ranking by CLIP, sheets, measures. See ``generator.Generator``."""
