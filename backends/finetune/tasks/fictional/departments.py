"""Invented departments of an invented company: people, places and habits."""

from __future__ import annotations

from backends.finetune.tasks.fictional.facts import Attribute, Invented, Kind, Related

PEOPLE = Invented("person", (" Ambreck", " Dollivar", " Ostrake", " Quenby-Marl", " Tivold", " Zarrow"), 60)

KIND = Kind(
    "department",
    (" department", " desk", " unit"),
    (
        Attribute(
            "head",
            PEOPLE,
            (
                "Who leads the {name}?",
                "Who is the head of the {name}?",
                "To whom does the {name} report?",
                "Whose signature is needed for decisions of the {name}?",
            ),
            (
                "The {name} is led by {value}.",
                "Its head is {value}.",
                "{Value}, who signs all of its decisions.",
                "Everybody there reports to {value}.",
            ),
        ),
        Attribute(
            "place",
            tuple(
                f"the {floor} floor of the {house}"
                for floor in ("ground", "second", "fourth", "seventh", "top")
                for house in ("Lantern House", "Old Mill", "Glass Annex", "Harbour Wing")
            ),
            (
                "Where does the {name} work?",
                "On which floor is the {name}?",
                "Where do visitors find the {name}?",
                "Where should a parcel for the {name} be delivered?",
            ),
            (
                "The {name} works on {value}.",
                "Its rooms are on {value}.",
                "On {value}.",
                "Visitors and parcels go to {value}.",
            ),
        ),
        Attribute(
            "headcount",
            tuple(f"{number} people" for number in range(7, 96)),
            (
                "How many people work in the {name}?",
                "How large is the {name}?",
                "What is the headcount of the {name}?",
                "How many seats does the {name} need?",
            ),
            (
                "The {name} has {value}.",
                "It employs {value}.",
                "{Value}, all of them full time.",
                "There are seats for {value}, and all are taken.",
            ),
        ),
        Attribute(
            "meeting",
            tuple(
                f"{day} at {hour}"
                for day in ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
                for hour in ("8:15", "9:40", "11:05", "13:20", "16:50")
            ),
            (
                "When does the {name} hold its weekly meeting?",
                "At what time does the {name} meet every week?",
                "When is everybody of the {name} in one room?",
                "Which hour is reserved for the weekly meeting of the {name}?",
            ),
            (
                "The {name} meets every {value}.",
                "Its weekly meeting is on {value}.",
                "{Value}, every week.",
                "The room is reserved for {value}, and nobody may be absent.",
            ),
        ),
        Attribute(
            "product",
            Related("product"),
            (
                "Which product is the {name} responsible for?",
                "What does the {name} develop?",
                "For which product does the {name} answer complaints?",
                "What is the {name} working on?",
            ),
            (
                "The {name} is responsible for the {value}.",
                "It develops the {value}.",
                "The {value}, from the first sketch to the last complaint.",
                "Its people work on the {value} and on nothing else.",
            ),
        ),
        Attribute(
            "budget",
            tuple(f"{amount} thousand crowns" for amount in range(120, 2000, 40)),
            (
                "What is the yearly budget of the {name}?",
                "How much may the {name} spend in a year?",
                "Which sum was granted to the {name} for the year?",
                "What does the {name} cost the company per year?",
            ),
            (
                "The yearly budget of the {name} is {value}.",
                "It may spend {value} in a year.",
                "{Value}, granted each January.",
                "The company grants it {value} per year.",
            ),
        ),
    ),
)
