"""Random damage to the bytes of a file: what disks, downloads and wrong programs do, and what an attacker would."""

import struct
import zlib
from collections.abc import Callable
from random import Random

PNG = b"\x89PNG\r\n\x1a\n"
EXTREME = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
SIZES = (0, 1, 2, 255, 256, 4096, 65535, 65536, 10**5, 10**6, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
HEAD = 128  # bytes in which headers mostly are


def damaged(data: bytes, other: bytes, rng: Random) -> bytes:
    """The content of a file with one to three kinds of damage; `other` is that of another file."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        ways = WAYS + (CHUNK_WAYS if data.startswith(PNG) else TIFF_WAYS if is_tiff(data) else ())
        data = rng.choice(ways)(data, other, rng) if data else data
    return data


def flip_bits(data: bytes, _: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 4, 16))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_bytes(data: bytes, _: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 4))):
        changed[place_in_head(data, rng)] = rng.choice(EXTREME)
    return bytes(changed)


def set_number(data: bytes, _: bytes, rng: Random) -> bytes:
    """One number of 2, 4 or 8 bytes, such as a width or a length, becomes another one."""
    place, length = place_in_head(data, rng), rng.choice((2, 4, 4, 8))
    number = rng.choice(SIZES) & (1 << 8 * length) - 1
    return data[:place] + number.to_bytes(length, rng.choice(("little", "big"))) + data[place + length :]


def cut_end(data: bytes, _: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data))]


def cut_middle(data: bytes, _: bytes, rng: Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + data[place + rng.choice((1, 2, 7, 64)) :]


def insert(data: bytes, _: bytes, rng: Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.choice((1, 2, 7, 300))) + data[place:]


def repeat(data: bytes, _: bytes, rng: Random) -> bytes:
    place, length = rng.randrange(len(data)), rng.choice((4, 32, 500))
    return data[: place + length] + data[place:]


def blank(data: bytes, _: bytes, rng: Random) -> bytes:
    place, length = rng.randrange(len(data)), rng.choice((4, 32, 500))
    return data[:place] + bytes([rng.choice(EXTREME)]) * length + data[place + length :]


def swap_blocks(data: bytes, _: bytes, rng: Random) -> bytes:
    first, second, third = sorted(rng.randrange(len(data)) for _ in range(3))
    return data[:first] + data[second:third] + data[first:second] + data[third:]


def splice(data: bytes, other: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def digits(data: bytes, _: bytes, rng: Random) -> bytes:
    """One number in text, as in PPM and .npy headers, becomes another one."""
    places = [place for place, byte in enumerate(data[:HEAD]) if 48 <= byte < 58]
    if not places:
        return set_number(data, b"", rng)
    place = rng.choice(places)
    return data[:place] + str(rng.choice((*SIZES, -1, 10**30, "1e9", "nan"))).encode() + data[place + 1 :]


def place_in_head(data: bytes, rng: Random) -> int:
    return rng.randrange(min(len(data), HEAD) if rng.random() < 0.7 else len(data))


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of each chunk of a PNG."""
    found, place = [], len(PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        found.append((kind, data[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def from_chunks(parts: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG whose checksums are right, so that its content is read."""
    return PNG + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def change_chunk(data: bytes, other: bytes, rng: Random) -> bytes:
    parts = chunks(data)
    place = rng.randrange(len(parts)) if parts else 0
    if not parts or not parts[place][1]:
        return data
    way = rng.choice((flip_bits, set_bytes, set_number, cut_end, insert, blank))
    parts[place] = parts[place][0], way(parts[place][1], other, rng)
    return from_chunks(parts)


def change_pixels(data: bytes, other: bytes, rng: Random) -> bytes:
    """Damage within the compressed rows."""
    parts = chunks(data)
    for place, (kind, content) in enumerate(parts):
        if kind == b"IDAT":
            try:
                rows = zlib.decompress(content)
            except zlib.error:
                rows = b""
            if not rows:
                return data
            parts[place] = (
                kind,
                zlib.compress(rng.choice((flip_bits, cut_end, insert, blank))(rows, other, rng)),
            )
            return from_chunks(parts)
    return data


def move_chunk(data: bytes, _: bytes, rng: Random) -> bytes:
    """A chunk is left out, stands twice, or elsewhere."""
    parts = chunks(data)
    if not parts:
        return data
    part = parts.pop(rng.randrange(len(parts)))
    for _ in range(rng.randrange(3)):
        parts.insert(rng.randint(0, len(parts)), part)
    return from_chunks(parts)


def is_tiff(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*")


def change_tag(data: bytes, _: bytes, rng: Random) -> bytes:
    """One field of one entry of the first directory of a TIFF: its tag, type, count or value."""
    order = "<" if data[:2] == b"II" else ">"
    start = struct.unpack(order + "I", data[4:8])[0] if len(data) >= 8 else len(data)
    if start + 2 > len(data):
        return data
    count = struct.unpack(order + "H", data[start : start + 2])[0]
    place = start + 2 + 12 * rng.randrange(max(1, min(count, 64)))
    offset, length, values = rng.choice(
        ((0, 2, (256, 257, 258, 259, 262, 273, 274, 277, 279, 284, 317, 322, 323, 324, 325, 338, 339, 347)),)
        + ((2, 2, (0, 1, 3, 4, 5, 11, 12, 13, 16, 99)), (4, 4, SIZES))
        + ((8, 4, (*SIZES, 3, 4, 5, 7, 8, 32946, 50000)),) * 3
    )
    place += offset
    number = rng.choice(values).to_bytes(length, "little" if order == "<" else "big")
    return data[:place] + number + data[place + length :]


Way = Callable[[bytes, bytes, Random], bytes]
WAYS: tuple[Way, ...] = (
    *(
        flip_bits,
        set_bytes,
        set_number,
        set_number,
        cut_end,
        cut_middle,
        insert,
        repeat,
        blank,
        swap_blocks,
        splice,
    ),
    digits,
)
CHUNK_WAYS: tuple[Way, ...] = (change_chunk,) * 6 + (change_pixels, move_chunk) * 2
TIFF_WAYS: tuple[Way, ...] = (change_tag,) * 12
