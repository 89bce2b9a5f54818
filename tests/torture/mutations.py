"""One hostile change to a model's folder: to a number or name of its JSON, to its weights, to its files."""

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

VALUES: list[Any] = [
    *(0, -1, 1, 2, 3, 7, 1000, 10**5, 10**6, 10**9, 2**31, 2**63, 10**18, 10**400, -(10**9), 0.5, 1e308, float("nan")),
    *(float("inf"), True, False, None, "", "x", "8", "\0", "../..", "/dev/zero", "x" * 100_000, [], [1], [None], {}),
    *({"a": 1}, [10**9, 10**9], ["x"]),
]
KEYS: list[tuple[str, Any]] = [
    ("auto_map", {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tok", "evil.Tok"]}),
    ("model_type", "llama"),
    ("architectures", ["GPT2LMHeadModel"]),
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ("dtype", "evil"),
    ("attn_implementation", "evil"),
    ("tokenizer_class", "GPT2Tokenizer"),
    ("pretrained_cfg", {"file": "evil.bin", "url": "http://127.0.0.1:1/evil.bin"}),
    ("model_args", {"depth": 10**6, "embed_dim": 10**6, "img_size": 10**6}),
    ("architecture", "vit_giant_patch14_dinov2"),
    ("text_config", 3),
    ("vision_config", [1]),
    ("weight_map", {"weight": "../evil.safetensors"}),
    ("encoder", "../evil"),
]


def mutate(folder: Path, rng: Random) -> str:
    """Change the folder (or the .npz file in it); returns what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = rng.choice(files)
    name = file.relative_to(folder)
    if file.suffix == ".json" and rng.random() < 0.8:
        return f"{name}: {_json(file, rng)}"
    if file.suffix == ".safetensors" and rng.random() < 0.6:
        return f"{name}: {_safetensors(file, rng)}"
    if file.suffix == ".npz" and rng.random() < 0.6:
        return f"{name}: {_npz(file, rng)}"
    return f"{name}: {_bytes(file, rng)}"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _json(file: Path, rng: Random) -> str:
    tree = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(tree, dict) and rng.random() < 0.15:
        key, value = rng.choice(KEYS)
        tree[key] = value
        done = f"{key} = {str(value)[:60]}"
    else:
        places = list(_places(tree))
        numbers = [(where, key) for where, key in places if isinstance(where[key], int | float)]
        where, key = rng.choice(numbers if numbers and rng.random() < 0.6 else places or [([None], 0)])
        if rng.random() < 0.15 and isinstance(where, dict):
            del where[key]
            done = f"without {key}"
        else:
            old = where[key]
            scaled = [int(old * factor) for factor in (2, 3, 64, 10**4)] if type(old) is int else []
            where[key] = rng.choice([*VALUES, *scaled])
            done = f"{key}: {str(old)[:30]} -> {str(where[key])[:30]}"
    file.write_text(json.dumps(tree))
    return done


def _safetensors(file: Path, rng: Random) -> str:
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = rng.choice([key for key in header if key != "__metadata__"])
    facts = header[name]
    match kind := rng.choice(["shape", "drop", "rename", "dtype", "offsets", "more", "size", "dimension"]):
        case "shape":
            facts["shape"] = rng.choice([[], [0], [10**9, 10**9], [2**62, 4], [-1], facts["shape"][::-1]])
        case "drop":
            del header[name]
        case "rename":
            header[rng.choice(["x", "", "a" * 9999, f"module.{name}", "vision_model"])] = header.pop(name)
        case "dtype":
            facts["dtype"] = rng.choice(["F64", "BOOL", "I8", "F16", "BF16", "evil", "U64", "F8_E4M3"])
        case "offsets":
            facts["data_offsets"] = rng.choice([[0, 0], [0, 2**62], [5, 1], [-1, 4]])
        case "more":
            header |= {f"{name}.{n}": {"dtype": "F32", "shape": [0, 10**6], "data_offsets": [0, 0]} for n in range(500)}
        case "size":
            file.write_bytes(struct.pack("<Q", rng.choice([0, 1, 2**40, 2**64 - 1])) + data[8:])
            return "size of the header"
        case "dimension":
            if facts["shape"]:
                facts["shape"] = [1] * rng.choice([1, 7, 200]) + facts["shape"]
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return f"{kind} of {name}"


def _npz(file: Path, rng: Random) -> str:
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    compressed = zipfile.ZIP_STORED
    match kind := rng.choice(["shape", "drop", "rename", "object", "bomb", "lie"]):
        case "shape":
            shape = rng.choice(["(1000000000, 1000000000)", "()", "(0,)", "(-1, 4)", "(3, 3)", "(" + "1, " * 99 + ")"])
            members[name] = _npy("<f4", shape) + members[name][128:]
        case "drop":
            del members[name]
        case "rename":
            members[rng.choice(["x.npy", "../x.npy", "params/t.npy", "x"])] = members.pop(name)
        case "object":
            members[name] = _npy("|O", "(1,)") + b"\x80\x04."
        case "bomb":  # 1 MB on the disk
            members[name] = _npy("<f4", "(250000000,)") + bytes(10**9)
            compressed = zipfile.ZIP_DEFLATED
        case "lie":
            members[name] = _npy("<f4", "(1000000000,)") + bytes(64)
    with zipfile.ZipFile(file, "w", compressed, compresslevel=1) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return f"{kind} of {name}"


def _npy(dtype: str, shape: str) -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def _bytes(file: Path, rng: Random) -> str:
    data = bytearray(file.read_bytes())

    def flip() -> None:
        for _ in range(rng.choice([1, 1, 8, 64])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)

    def link(target: str) -> Callable[[], None]:
        return lambda: (file.unlink(), file.symlink_to(target))[0]

    kinds: dict[str, Callable[[], Any]] = {
        "flipped bits": flip,
        "cut": lambda: file.write_bytes(data[: rng.randrange(len(data))]),
        "emptied": lambda: file.write_bytes(b""),
        "noise": lambda: file.write_bytes(rng.randbytes(len(data))),
        "zeros": lambda: file.write_bytes(bytes(len(data))),
        "nested": lambda: file.write_bytes(b"[" * 100_000),
        "nested objects": lambda: file.write_bytes(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        "a long number": lambda: file.write_bytes(b'{"a": ' + b"9" * 100_000 + b"}"),
        "no UTF-8": lambda: file.write_bytes(b'{"a": "\xff\xfe"}'),
        "doubled": lambda: file.write_bytes(data + data),
        "removed": file.unlink,
        "a folder": lambda: (file.unlink(), file.mkdir()),
        "a pipe": lambda: (file.unlink(), os.mkfifo(file)),
        "a circle": link(file.name),
        "endless": link("/dev/zero"),
        "another file": lambda: shutil.copyfile(__file__, file),
    }
    kind = rng.choice(list(kinds))
    kinds[kind]()
    return kind
