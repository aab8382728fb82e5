"""The classes of published datasets in the order of the papers' models, and their ids or colors in the mask files."""

import re

from ..label_maps import IGNORE

IGNORE_INDEX = 255
LabelIds = dict[int | tuple[int, int, int], int | str]  # id or color in a mask -> class or "ignore"

ADE20K = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, table, mountain,
plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock,
wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink, skyscraper,
fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge,
bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair,
boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver,
airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain,
conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball,
food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase,
traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""

# Class -> id in *_labelIds.png, RGB color.
CITYSCAPES = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
CITYSCAPES_IDS = 34

COCO_STUFF = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking meter, bench,
bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis,
snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork,
knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant,
bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
clock, vase, scissors, teddy bear, hair drier, toothbrush,
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth,
clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other, floor-stone,
floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light,
mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic, platform, playingfield,
railing, railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone,
straw, structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel,
wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
"""
COCO_STUFF_IDS = 182
# street sign, hat, shoe, eye glasses, plate, mirror, window, desk, door, blender, hair brush: ids that occur in no image
COCO_STUFF_UNUSED = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}

URUR = {  # class -> RGB color
    "others": (0, 0, 0),
    "building": (230, 230, 230),
    "greenhouse": (100, 100, 100),
    "woodland": (200, 230, 160),
    "farmland": (95, 163, 7),
    "bareland": (255, 255, 100),
    "water": (150, 200, 250),
    "road": (240, 100, 80),
}
URUR_IGNORED = (255, 255, 255)
DEEPGLOBE = {  # class -> RGB color
    "urban land": (0, 255, 255),
    "agriculture land": (255, 255, 0),
    "rangeland": (255, 0, 255),
    "forest land": (0, 255, 0),
    "water": (0, 0, 255),
    "barren land": (255, 255, 255),
}
DEEPGLOBE_IGNORED = (0, 0, 0)  # unknown: clouds and others
FLAIR_HUB = [
    *(
        "building",
        "greenhouse",
        "swimming pool",
        "impervious surface",
        "pervious surface",
        "bare soil",
        "water",
        "snow",
    ),
    *(
        "herbaceous vegetation",
        "agricultural land",
        "plowed land",
        "vineyard",
        "deciduous",
        "coniferous",
        "brushwood",
    ),
]
FLAIR_HUB_IGNORED = (15, 16, 17, 18)  # clear cut, ligneous, mixed, undefined: not evaluated by the authors
INRIA_VALIDATION_TILES = 5  # the first ones of each city, as the authors recommend


def names(table: str) -> list[str]:
    return " ".join(table.split()).split(", ")


def ade20k_ids() -> LabelIds:
    """Ids 1..150 are the classes; 0 is everything else."""
    return {0: IGNORE} | {index + 1: index for index in range(len(names(ADE20K)))}


def cityscapes_ids() -> LabelIds:
    """19 of the 34 ids are classes."""
    classes = {stored: index for index, (stored, _) in enumerate(CITYSCAPES.values())}
    return dict.fromkeys(range(CITYSCAPES_IDS), IGNORE) | {IGNORE_INDEX: IGNORE} | classes


def coco_stuff_ids() -> LabelIds:
    """Ids 0..90 are things and 91..181 are stuff, with gaps; 255 is unlabeled."""
    used = [stored for stored in range(COCO_STUFF_IDS) if stored not in COCO_STUFF_UNUSED]
    return {stored: index for index, stored in enumerate(used)} | {IGNORE_INDEX: IGNORE}


def train_ids(count: int) -> LabelIds:
    """Ids that are class ids already; 255 is unlabeled."""
    return {index: index for index in range(count)} | {IGNORE_INDEX: IGNORE}


def color_ids(colors: dict[str, tuple[int, int, int]], ignored: tuple[int, int, int]) -> LabelIds:
    """The classes by their colors, and the color of pixels without a class."""
    return {color: index for index, color in enumerate(colors.values())} | {ignored: IGNORE}


def is_in_inria_split(name: str, split: str) -> bool:
    """Whether a tile such as "austin12" belongs to "train" or "val"."""
    number = int("0" + re.sub(r".*?([0-9]*)$", r"\1", name))
    return (number <= INRIA_VALIDATION_TILES) == (split == "val")
