"""Tokenizers from files (a transformers folder, open_clip's CLIP) and to files that transformers opens."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

from mmpretrain.data.cache import write_atomic
from mmpretrain.data.errors import DataError
from mmpretrain.data.text import Tokenizer

CLIP_TOKENS = 77
BERT_ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA_ROLES = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
_SOT, _EOT = "<|startoftext|>", "<|endoftext|>"
_CLIP_MERGES = 49152 - 256 - 2
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip(max_tokens: int = CLIP_TOKENS) -> Tokenizer:
    """CLIP's byte-pair encoding with open_clip's vocabulary file and cleaning (49408 ids, padding 0).

    Raises:
        DataError: open_clip is not installed, or ``max_tokens`` exceeds 77.
    """
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    if max_tokens > CLIP_TOKENS:
        raise DataError(f"data.max_tokens={max_tokens}: CLIP's tokenizer has at most {CLIP_TOKENS}")
    found = importlib.util.find_spec("open_clip")  # its folder, without importing it
    if found is None or not found.submodule_search_locations:
        raise DataError("data.text.tokenizer=clip takes its vocabulary from open_clip, which is not installed; pip install open-clip-torch")
    with gzip.open(Path(found.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        merges: list[Any] = [tuple(line.split()) for line in file.read().split("\n")[1 : _CLIP_MERGES + 1]]
    letters = _byte_letters()
    names = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), _SOT, _EOT]
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=_EOT))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        (_EOT, vocabulary[_EOT]), (_SOT, vocabulary[_SOT]), trim_offsets=False, add_prefix_space=False
    )
    backend.add_special_tokens([AddedToken(token, special=True) for token in (_SOT, _EOT)])
    return Tokenizer(backend.to_str(), "clip", {"cls": _SOT, "sep": _EOT}, max_tokens, pad_id=0, clean=True)


def _byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes, in the order of CLIP's vocabulary (GPT-2's byte table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(rest))]


def folder(path: Path, max_tokens: int) -> Tokenizer:
    """The tokenizer of a transformers folder, without running any code of it.

    Reads ``tokenizer.json`` (or ``vocab.txt`` of a BERT), ``tokenizer_config.json`` and ``special_tokens_map.json``.

    Raises:
        DataError: files that are missing or cannot be read, or no padding token.
    """
    config: dict[str, Any] = {}
    try:
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (path / name).is_file():
                config.update(json.loads((path / name).read_text(encoding="utf-8")))
        if (path / "tokenizer.json").is_file():
            text = (path / "tokenizer.json").read_text(encoding="utf-8")
        elif (path / "vocab.txt").is_file():
            lines = (path / "vocab.txt").read_text(encoding="utf-8").split("\n")
            text = wordpiece({line: n for n, line in enumerate(lines) if line}, config.get("do_lower_case", True), BERT_ROLES)
        else:
            raise DataError(f"{path}: no tokenizer.json; open it with transformers' AutoTokenizer once and save it with save_pretrained")
        tokens = {role: _content(config.get(f"{role}_token")) for role in ("pad", "mask", "cls", "sep", "unk", "bos", "eos")}
        described = json.loads(text)
        style = _style(described)
        if described["model"].get("dropout"):  # the library would draw from a generator of its own; data.text.dropout is ours
            text = json.dumps({**described, "model": {**described["model"], "dropout": None}}, ensure_ascii=False)
    except (ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: the tokenizer cannot be read ({error})") from None
    if not config and style == "wordpiece":
        tokens.update(BERT_ROLES)
    roles = {"pad": tokens["pad"], "mask": tokens["mask"], "unk": tokens["unk"]}
    roles.update(cls=tokens["cls"] or tokens["bos"], sep=tokens["sep"] or tokens["eos"])
    roles = {role: token for role, token in roles.items() if token}
    return Tokenizer(text, style, roles, max_tokens, pad_id=0 if style == "clip" else None)


def without_special(tokenizer: Tokenizer) -> Tokenizer:
    """The same ids without start and end tokens around a text."""
    plain = json.dumps({**json.loads(tokenizer._plain()), "post_processor": None}, ensure_ascii=False)
    kept = tokenizer.max_tokens, tokenizer.pad_id, tokenizer.clean, tokenizer.answers
    return Tokenizer(plain, tokenizer.style, tokenizer.roles, *kept)


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _style(backend: dict[str, Any]) -> str:
    model = backend["model"]
    if model.get("type") == "WordPiece":
        return "wordpiece"
    if model.get("end_of_word_suffix") == "</w>":
        return "clip"
    return "byte_bpe" if "ByteLevel" in json.dumps(backend.get("pre_tokenizer")) else "unigram"


def wordpiece(vocabulary: dict[str, int], lowercase: bool, roles: dict[str, str]) -> str:
    """JSON text of BERT's tokenizer over ``vocabulary``."""
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.WordPiece(vocab=vocabulary, unk_token=roles["unk"], max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in roles.values()])
    cls, sep = roles["cls"], roles["sep"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    return backend.to_str()


def save(tokenizer: Tokenizer, target: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json``, ``special_tokens_map.json`` and the vocabulary files of the older format.

    transformers opens the folder with ``AutoTokenizer`` (BertTokenizer, RobertaTokenizer, CLIPTokenizer; its general class for byte-level
    BPE that lower-cases, which RobertaTokenizer would not do) and gives the same ids. CLIP's texts are repaired with ftfy by open_clip and
    here, but not by transformers.
    """
    plain = tokenizer._plain()
    model = json.loads(plain)["model"]
    roles, normalized = tokenizer.roles, tokenizer.backend.normalizer is not None
    config: dict[str, Any] = {"model_max_length": tokenizer.max_tokens, "clean_up_tokenization_spaces": False}
    if tokenizer.style == "wordpiece":
        lower = bool((json.loads(plain).get("normalizer") or {}).get("lowercase", True))
        config |= {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, "strip_accents": None, "tokenize_chinese_chars": True}
        special = {f"{role}_token": token for role, token in roles.items()}
        ordered = sorted(model["vocab"].items(), key=lambda item: item[1])
        write_atomic(target / "vocab.txt", "".join(f"{token}\n" for token, _ in ordered).encode("utf-8"))
    elif tokenizer.style == "clip":
        config |= {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "errors": "replace"}
        special = {"bos_token": _SOT, "eos_token": _EOT, "unk_token": _EOT, "pad_token": _EOT}
    elif tokenizer.style == "byte_bpe":
        named = "PreTrainedTokenizerFast" if normalized else "RobertaTokenizer"
        config |= {"tokenizer_class": named, "add_prefix_space": False, "trim_offsets": True, "errors": "replace"}
        special = {f"{role}_token": token for role, token in roles.items()}
        special |= {"bos_token": roles["cls"], "eos_token": roles["sep"]} if {"cls", "sep"} <= set(roles) else {}
    else:
        config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        special = {f"{role}_token": token for role, token in roles.items()}
    if tokenizer.style == "clip" or (tokenizer.style == "byte_bpe" and not normalized):
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        write_atomic(target / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False).encode("utf-8"))
        write_atomic(target / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]).encode("utf-8"))
    write_atomic(target / "tokenizer.json", plain.encode("utf-8"))
    write_atomic(target / "tokenizer_config.json", json.dumps({**config, **special}, indent=2, ensure_ascii=False).encode("utf-8"))
    write_atomic(target / "special_tokens_map.json", json.dumps(special, indent=2, ensure_ascii=False).encode("utf-8"))
