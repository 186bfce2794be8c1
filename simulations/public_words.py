"""The words of the public text: plain lists, from which the grammars choose.

Everything here is ordinary vocabulary. Given names stand alone, so no person can be meant; towns
are invented.
"""

from __future__ import annotations


def words(text: str, separator: str | None = None) -> tuple[str, ...]:
    """Split a list written as one string."""
    return tuple(part.strip() for part in text.split(separator))


GIRLS = words(
    "Anna Mia Lily Sara Nora Ella Ruth Clara Ivy Rosa Lena Maya Emma Tess Jane Zoe Alice "
    "Grace Molly Helen"
)
BOYS = words(
    "Tom Ben Sam Leo Max Jack Paul Adam Luke Noah Peter Oscar Hugo Simon Felix Daniel Henry "
    "Mark Theo George"
)
PLACES = words(
    "park|garden|forest|river|beach|market|school|library|kitchen|farm|old mill|station|"
    "bridge|hill|harbour|village|meadow|lake|bakery|museum",
    "|",
)
TOWNS = words(
    "Northbury Eastmoor Westhaven Stonefield Millbrook Fairport Greenhill Lakeside Oakdale "
    "Riverton Ashford Hillcrest Maplewood Redcliff Silverton"
)
ANIMALS = words("dog cat bird rabbit horse cow duck fox mouse frog bear goat sheep owl turtle hen")
THINGS = words(
    "ball book kite lamp box boat hat key clock basket map stone bell cup drum letter coat "
    "blanket ring feather button ladder mirror candle wheel rope"
)
COLORS = words("red blue green yellow white black brown grey orange purple silver golden")
SIZES = words("big small little tiny huge tall long short round heavy")
FEELINGS = words("happy sad tired proud angry afraid excited lonely worried calm")
WEEKDAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words(
    "January February March April May June July August September October November December"
)
NUMBERS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
FOODS = words(
    "apple carrot potato onion tomato pear lemon mushroom pepper egg bean cabbage plum walnut"
)
JOBS = words("teacher baker farmer doctor nurse driver painter sailor writer singer")
KIN = words("mother father sister brother uncle aunt grandmother grandfather")
SKIES = words("sunny cloudy rainy windy foggy clear stormy dry snowy mild")
TRIPS = words(
    "found a {s} {c} {t} under a tree|lost the {c} {t} near the {p}|saw a {c} {t} at the {p}|"
    "picked up a {s} {t} on the way to the {p}|carried a {c} {t} to the {p}|"
    "made a {c} {t} out of paper|bought a {s} {c} {t} at the market",
    "|",
)
CREATURES = {
    "dog": ("a meadow or a house", "meat and biscuits", "guards the door"),
    "owl": ("the hollow of an old tree", "mice", "hunts at night"),
    "bear": ("the forest", "berries, roots and fish", "sleeps through the winter"),
    "duck": ("rivers and lakes", "plants and small insects", "swims very well"),
    "rabbit": ("a burrow under the ground", "grass and leaves", "hears every sound"),
    "horse": ("open fields", "hay and oats", "runs very fast"),
    "frog": ("wet places near water", "flies", "jumps far"),
    "goat": ("steep hills", "almost every plant", "climbs over rocks"),
    "turtle": ("warm seas and ponds", "plants and fish", "carries a hard shell"),
    "bee": ("a hive with many others", "nectar", "makes honey"),
    "whale": ("the open sea", "very small animals", "breathes air"),
    "spider": ("corners and gardens", "insects", "spins a web"),
}
MATERIALS = {
    "Iron": ("hard grey metal", "bridges, tools and nails"),
    "Glass": ("clear material made from sand", "windows and bottles"),
    "Wool": ("soft fibre that comes from sheep", "coats, hats and blankets"),
    "Paper": ("thin material made from wood", "books and letters"),
    "Copper": ("soft brown metal", "wires and coins"),
    "Clay": ("soft earth that becomes hard in fire", "pots and bricks"),
    "Cotton": ("white fibre that grows on a plant", "shirts and sheets"),
    "Salt": ("white mineral from the sea", "cooking and keeping food"),
    "Rubber": ("stretchy material made from trees", "tyres and boots"),
    "Wood": ("strong material that comes from trees", "houses, chairs and ships"),
}
TASKS = {
    "plant a tree": (
        "dig a deep hole|put the young tree into the hole|fill the hole with soil|"
        "water the tree every morning"
    ),
    "clean a window": (
        "fill a bucket with warm water|add a little soap|wipe the glass with a soft cloth|"
        "dry it with old paper"
    ),
    "make a kite": (
        "cut two sticks of wood|tie them in a cross|cover them with thin paper|"
        "fasten a long string to the middle"
    ),
    "wash a coat": (
        "empty the pockets|read the label|put the coat into cold water|hang it up to dry"
    ),
    "fix a flat tyre": (
        "take off the wheel|find the small hole|cover the hole with a patch|pump up the tyre"
    ),
    "write a letter": (
        "put the date at the top|greet the reader|say what you want to say|sign your name"
    ),
    "paint a chair": (
        "rub the wood until it is smooth|wipe away the dust|put on a thin coat of paint|"
        "wait one day and paint it again"
    ),
    "pack a bag": (
        "make a list of what you need|fold your clothes|put heavy things at the bottom|"
        "check the list again"
    ),
}
TROUBLES = {
    "a cold": ("drink plenty of water|rest at home|keep warm", "a week"),
    "a headache": ("rest in a quiet room|drink a glass of water|close your eyes", "a day or two"),
    "a sore throat": ("drink warm tea with honey|speak softly|avoid smoke", "a week"),
    "a cough": ("drink something warm|breathe fresh air|sleep with your head high", "three weeks"),
    "a fever": ("drink often|wear light clothes|stay in bed", "three days"),
    "back pain": ("keep moving gently|avoid heavy loads|use a warm pad", "six weeks"),
    "a blister": ("keep it clean|cover it with a plaster|wear soft shoes", "a few days"),
    "poor sleep": (
        "go to bed at the same hour|avoid coffee at night|keep the room dark",
        "a month",
    ),
    "an upset stomach": ("eat plain food|drink small amounts|rest", "two days"),
    "a sprained ankle": ("rest the foot|put ice on it|raise the leg", "two weeks"),
}
CATEGORIES = {
    "tool": words("hammer saw drill spade rake knife needle axe brush pump broom shovel chisel"),
    "bird": words("eagle robin swan crow pigeon sparrow parrot stork gull raven finch heron"),
    "fish": words("trout salmon shark carp herring tuna pike perch cod plaice"),
    "tree": words("oak pine birch maple willow cedar elm poplar spruce chestnut"),
    "flower": words("rose tulip daisy violet lily poppy orchid sunflower iris bluebell"),
    "fruit": words("banana cherry peach grape melon orange mango fig apricot raspberry"),
    "vegetable": words("spinach lettuce cucumber radish turnip celery leek garlic parsnip"),
    "drink": words("tea coffee milk juice water lemonade cocoa cider broth"),
    "garment": words("shirt scarf glove sock jacket skirt sweater belt apron trouser"),
    "vehicle": words("car bus train tram lorry bicycle ship ferry tractor rocket canoe"),
    "instrument": words("piano violin trumpet flute guitar organ harp cello whistle banjo"),
    "room": words("bedroom bathroom cellar attic hall office pantry corridor workshop"),
    "metal": words("iron gold copper silver tin lead zinc nickel platinum"),
    "gem": words("diamond ruby pearl emerald opal amber jade garnet"),
    "sport": words("football tennis rowing skating chess swimming cricket fencing hockey"),
    "insect": words("ant bee wasp moth beetle cricket butterfly fly dragonfly"),
    "building": words("castle tower temple factory palace theatre hotel barn lighthouse"),
    "shape": words("circle square triangle oval cube sphere cone spiral"),
}
COUNTABLE = tuple(
    kind for kind in CATEGORIES if kind not in {"metal", "drink", "sport", "vegetable"}
)
ACTS = tuple(
    words(forms)
    for forms in words(
        "find finds found|see sees saw|take takes took|bring brings brought|hold holds held|"
        "clean cleans cleaned|paint paints painted|want wants wanted|"
        "remember remembers remembered|carry carries carried|draw draws drew|move moves moved|"
        "need needs needed|repair repairs repaired|sell sells sold|choose chooses chose|"
        "describe describes described|follow follows followed|watch watches watched|"
        "hide hides hid|open opens opened|measure measures measured|collect collects collected|"
        "return returns returned",
        "|",
    )
)
STATES = tuple(
    words(forms)
    for forms in words(
        "wait waits waited|sleep sleeps slept|work works worked|sing sings sang|"
        "rest rests rested|laugh laughs laughed|travel travels travelled|listen listens listened|"
        "arrive arrives arrived|stand stands stood|live lives lived|play plays played|"
        "walk walks walked|dance dances danced|stay stays stayed|speak speaks spoke",
        "|",
    )
)
QUALITIES = words(
    "useful beautiful expensive broken strange famous ancient modern clever quiet gentle "
    "strong careful honest simple different important dangerous pleasant ordinary wonderful "
    "empty full dirty clean soft hard sharp narrow wide early late ready certain"
)
MANNERS = words(
    "slowly quickly quietly carefully often always never sometimes gladly early "
    "usually suddenly patiently"
)
WHERES = words(
    "near|behind|in front of|inside|outside|next to|not far from|on the way to",
    "|",
)
SYLLABLES = words(
    "bel cor dar fen gal hol jor kel lor mar nor os pel quil ran sel tar ul ver wil yar zel "
    "ash bran cal dun el far gris hart ing jas mon per tri con pro com der est ion ent ment"
)
