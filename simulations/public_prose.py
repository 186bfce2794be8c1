"""Ten everyday genres of invented public text: stories, letters, recipes, advice and the like."""

from __future__ import annotations

from simulations.draw import Draw
from simulations.public_words import (
    ANIMALS,
    BOYS,
    COLORS,
    CREATURES,
    FEELINGS,
    FOODS,
    GIRLS,
    JOBS,
    KIN,
    MATERIALS,
    MONTHS,
    NUMBERS,
    PLACES,
    SIZES,
    SKIES,
    TASKS,
    THINGS,
    TOWNS,
    TRIPS,
    TROUBLES,
    WEEKDAYS,
)


def an(phrase: str) -> str:
    """Put the right indefinite article before a phrase."""
    return f"an {phrase}" if phrase[0].lower() in "aeiou" else f"a {phrase}"


def plural(noun: str) -> str:
    """Return the plural of a noun."""
    irregular = {"mouse": "mice", "sheep": "sheep", "tomato": "tomatoes", "potato": "potatoes"}
    if noun in irregular:
        return irregular[noun]
    if noun.endswith("y") and noun[-2] not in "aeou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("x", "s", "ch", "sh")) else f"{noun}s"


def person(draw: Draw) -> tuple[str, str, str, str]:
    """Return (name, subject, object, possessive) of one invented person."""
    if draw.chance(0.5):
        return draw.pick(GIRLS), "she", "her", "her"
    return draw.pick(BOYS), "he", "him", "his"


def story(draw: Draw) -> str:
    """Tell a little story about one person."""
    name, he, him, his = person(draw)
    friend = draw.pick([other for other in GIRLS + BOYS if other != name])
    thing, color, place = draw.pick(THINGS), draw.pick(COLORS), draw.pick(PLACES)
    animal = draw.pick(ANIMALS)
    deed = draw.pick(TRIPS).format(s=draw.pick(SIZES), c=color, t=thing, p=place)
    feeling, later = draw.sample(FEELINGS, 2)
    opening = draw.pick(
        (
            f"Once upon a time there was {an(draw.pick(SIZES))} {animal} who lived with {name}.",
            f"One day {name} went to the {place} with {his} {animal}.",
            f"{name} and {friend} were good friends. They lived near the {place}.",
            f"It was {draw.pick(WEEKDAYS)}, and {name} was {feeling}.",
        )
    )
    middle = draw.pick(
        (
            f'"Look at this {thing}!" said {name}. "It is {color}," {friend} answered.',
            f"{name} showed the {thing} to {friend}, and {friend} gave {him} a smile.",
            f"The {animal} wanted to play with the {thing}, but {name} said no.",
            f'{friend} asked, "May I have the {thing}?" {name} thought about it for a while.',
            f"Then it began to rain, so {name} and {friend} ran back to the house together.",
        )
    )
    end = draw.pick(
        (
            f"In the evening {he} put the {thing} into a box and went to bed.",
            f"From that day on, {name} never forgot the {color} {thing}.",
            f"{name} was very {later}, because {his} {draw.pick(KIN)} had helped {him}.",
            f"They went home together, and {he} told {his} {draw.pick(KIN)} about the {thing}.",
        )
    )
    return f"{opening} {he.capitalize()} {deed}. {middle} {end}"


def encyclopaedia(draw: Draw) -> str:
    """Explain an animal, a material or a town."""
    if draw.chance(0.4):
        name, (home, food, habit) = draw.pick(list(CREATURES.items()))
        some = draw.pick(
            (
                f"It eats {food}, and it {habit}.",
                f"It {habit} and eats {food}.",
                f"Because it eats {food}, it is often seen near {home}.",
            )
        )
        life = draw.between(2, 20)
        return (
            f"The {name} is an animal that lives in {home}. {some} "
            f"Most {plural(name)} live for about {NUMBERS[life]} years."
        )
    if draw.chance(0.5):
        name, (kind, use) = draw.pick(list(MATERIALS.items()))
        return (
            f"{name} is a {kind}. It is used for {use}. People have known {name.lower()} for "
            f"more than {draw.between(2, 60) * 100} years."
        )
    town, other = draw.sample(TOWNS, 2)
    people, year = draw.between(2, 90), draw.between(1100, 1990)
    return (
        f"{town} is a town of about {people} thousand people. It was founded in {year} and lies "
        f"{draw.between(5, 80)} kilometres {draw.pick(('north', 'south', 'east', 'west'))} of "
        f"{other}. The town is known for its {draw.pick(PLACES)} and its {draw.pick(PLACES)}."
    )


def recipe(draw: Draw) -> str:
    """Describe how to cook something."""
    first, second, third = draw.sample(FOODS, 3)
    count, minutes = draw.between(2, 8), 5 * draw.between(2, 9)
    dish = draw.pick(("soup", "salad", "pie", "stew", "cake"))
    return (
        f"{first.capitalize()} {dish}. You need {NUMBERS[count]} {plural(first)}, one {second} "
        f"and some {plural(third)}. First wash and cut the {plural(first)}. Then add the "
        f"{second} and a spoon of {draw.pick(('butter', 'oil', 'salt', 'sugar', 'cream'))}. Cook "
        f"everything for {minutes} minutes, stir well, and serve it "
        f"{draw.pick(('warm', 'cold', 'with bread', 'with rice'))}. "
        f"This {dish} is enough for {NUMBERS[draw.between(2, 6)]} people."
    )


def letter(draw: Draw) -> str:
    """Write a letter between friends."""
    writer, _, _, _ = person(draw)
    reader = draw.pick([other for other in GIRLS + BOYS if other != writer])
    kin, thing = draw.pick(KIN), draw.pick(THINGS)
    news = draw.pick(
        (
            f"My {kin} and I are staying in {draw.pick(TOWNS)} until {draw.pick(WEEKDAYS)}.",
            f"We have a new {draw.pick(ANIMALS)}, and it is {draw.pick(COLORS)}.",
            f"Last {draw.pick(WEEKDAYS)} I visited the {draw.pick(PLACES)} with my {kin}.",
            f"I have been working as {an(draw.pick(JOBS))} since {draw.pick(MONTHS)}.",
        )
    )
    ask = draw.pick(
        (
            "Will you come and see us soon?",
            f"Do you still have the {draw.pick(COLORS)} {thing}?",
            "How are you, and how is your family?",
            f"Could you please send me the {thing}?",
        )
    )
    close = draw.pick(("Yours", "With love", "Best wishes", "Your friend"))
    return (
        f"Dear {reader},\nThank you for your letter and for the {thing}. {news} {ask} The weather "
        f"here is {draw.pick(SKIES)}.\n{close},\n{writer}"
    )


def dialogue(draw: Draw) -> str:
    """Let two people ask and answer."""
    one, two = draw.sample(GIRLS + BOYS, 2)
    thing, place = draw.pick(THINGS), draw.pick(PLACES)
    hour = draw.between(1, 12)
    exchanges = (
        (
            f"Where is the {thing}?",
            f"I think it is at the {place}. I saw it there on {draw.pick(WEEKDAYS)}.",
        ),
        (
            f"What time does the {place} open?",
            f"It opens at {NUMBERS[hour]} o'clock, but not on {draw.pick(WEEKDAYS)}.",
        ),
        (
            f"Do you like my new {thing}?",
            f"Yes, I like it very much. {draw.pick(COLORS).capitalize()} is my favourite colour.",
        ),
        (
            "What will the weather be like tomorrow?",
            f"They say it will be {draw.pick(SKIES)}. Take your coat.",
        ),
        (
            f"How many {plural(thing)} do we have?",
            f"We have {NUMBERS[draw.between(2, 20)]}. That should be enough.",
        ),
        (
            f"Can you help me carry this {draw.pick(SIZES)} {thing}?",
            f"Of course. Let us take it to the {place} together.",
        ),
    )
    lines = [
        f"{one}: {question}\n{two}: {answer}"
        for question, answer in draw.sample(exchanges, draw.between(1, 3))
    ]
    return "\n".join([*lines, f"{one}: {draw.pick(('Thank you!', 'All right.', 'See you soon!'))}"])


def how_to(draw: Draw) -> str:
    """List the four steps of a task in order."""
    task, steps = draw.pick(list(TASKS.items()))
    first, second, third, fourth = steps.split("|")
    return draw.pick(
        (
            (
                f"How to {task}: First, {first}. Then {second}. After that, {third}. "
                f"Finally, {fourth}."
            ),
            (
                f"If you want to {task}, you should {first} and then {second}. Do not forget to "
                f"{third}. When that is done, {fourth}."
            ),
            (
                f"How to {task}.\n1. {first.capitalize()}.\n2. {second.capitalize()}.\n"
                f"3. {third.capitalize()}.\n4. {fourth.capitalize()}."
            ),
        )
    )


def arithmetic(draw: Draw) -> str:
    """Add and take away, in figures or in words."""
    left, right = draw.between(1, 60), draw.between(1, 39)
    if draw.chance(0.5):
        name, he, _, _ = person(draw)
        thing = plural(draw.pick(THINGS + FOODS))
        some, more = draw.between(2, 12), draw.between(2, 8)
        if draw.chance(0.5):
            return (
                f"{name} has {NUMBERS[some]} {thing}. {he.capitalize()} gets {NUMBERS[more]} more "
                f"{thing}. Now {he} has {NUMBERS[some + more]} {thing}, because {some} plus {more} "
                f"is {some + more}."
            )
        return (
            f"{name} has {NUMBERS[some + more]} {thing}. {he.capitalize()} gives away "
            f"{NUMBERS[more]} of them. Now {he} has {NUMBERS[some]} {thing}, because "
            f"{some + more} minus {more} is {some}."
        )
    small = draw.between(2, 9)
    return (
        f"{left} + {right} = {left + right}. {left + right} - {right} = {left}. "
        f"{small} x {draw.pick((10,))} = {small * 10}. So {left} plus {right} is {left + right}."
    )


def weather(draw: Draw) -> str:
    """Forecast three days and compare them."""
    town = draw.pick(TOWNS)
    start = draw.below(7)
    days = [WEEKDAYS[(start + offset) % 7] for offset in range(3)]
    degrees = draw.sample(range(2, 31), 3)
    skies = draw.sample(SKIES, 3)
    report = " ".join(
        f"{day} will be {sky} with {degree} degrees."
        for day, sky, degree in zip(days, skies, degrees, strict=True)
    )
    coldest = days[degrees.index(min(degrees))]
    warmest = days[degrees.index(max(degrees))]
    return (
        f"The weather in {town} in {draw.pick(MONTHS)}: {report} "
        f"The coldest day will be {coldest}, and the warmest day will be {warmest}."
    )


def health(draw: Draw) -> str:
    """Give the general advice that any leaflet gives."""
    trouble, (advice, time) = draw.pick(list(TROUBLES.items()))
    first, second, third = draw.sample(advice.split("|"), 3)
    opening = draw.pick(
        (
            f"If you have {trouble}, {first} and {second}.",
            f"Many people have {trouble} from time to time. It helps to {first} and to {second}.",
            f"What can you do about {trouble}? You can {first}, and you can {second}.",
        )
    )
    return (
        f"{opening} You should also {third}. It usually gets better within {time}. "
        f"If it does not, talk to a {draw.pick(('doctor', 'nurse', 'pharmacist'))}."
    )


def notice(draw: Draw) -> str:
    """Announce a public event."""
    town, place, day = draw.pick(TOWNS), draw.pick(PLACES), draw.pick(WEEKDAYS)
    date, month = draw.between(1, 28), draw.pick(MONTHS)
    event = draw.pick(("concert", "market", "race", "dance", "meeting", "play", "fair"))
    return (
        f"The {town} {event} will be held on {day}, {date} {month}, at the {place}. It begins at "
        f"{NUMBERS[draw.between(1, 12)]} o'clock and lasts {NUMBERS[draw.between(2, 5)]} hours. "
        f"Tickets cost {draw.between(2, 20)} crowns. Everybody is welcome, but "
        f"{plural(draw.pick(ANIMALS))} must stay outside."
    )
