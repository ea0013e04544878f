"""The formats that ``mmpretrain data build`` reads: one small module each, imported when it is used.

A format has ``add_options(parser)`` and ``records(options) -> Iterator[Record | Skip]``, lazily and in a fixed order. ``MAX_MISSING`` is
how much of the source may be left out before the build is a failure (default ``"0"``). Adding a format is a module and one line here.
"""

from __future__ import annotations

FORMATS: dict[str, tuple[str, str]] = {  # name -> (module, what it is)
    "coco": ("coco", "COCO captions and instances: the official JSON files"),
    "karpathy": ("karpathy", "Karpathy's dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json with their splits"),
    "flickr30k": ("flickr30k", "Flickr30k and Flickr8k: the file of captions, results_20130124.token"),
    "visual-genome": ("visual_genome", "Visual Genome: regions, objects, attributes, relationships, questions"),
    "sbu": ("sbu", "SBU Captions: JSON or the two text files, with a folder of pictures"),
    "conceptual": ("conceptual", "Conceptual Captions 3M and 12M: TSV with a folder of pictures"),
    "img2dataset": ("img2dataset", "what img2dataset downloaded: tar files or folders"),
    "vqa": ("vqa", "VQA v1 and v2: questions, with answers and soft scores"),
    "gqa": ("gqa", "GQA: questions and scene graphs"),
    "nlvr2": ("nlvr2", "NLVR2: statements about two pictures"),
    "refcoco": ("refcoco", "RefCOCO, RefCOCO+, RefCOCOg: expressions for objects"),
    "vilt-arrow": ("vilt_arrow", "the Arrow files of ViLT's scripts: captions, VQA, NLVR2"),
    "table": ("table", "CSV, TSV, JSON lines or Parquet with columns for picture and caption"),
    "folder": ("folder", "a folder of pictures with .txt or .json files beside them"),
    "text": ("text", "text alone: a sentence, document or JSON object per line, or a document per file"),
}
