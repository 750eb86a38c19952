"""Invented products of an invented company: who makes them, of what, and for how much."""

from __future__ import annotations

from backends.finetune.tasks.fictional.departments import PEOPLE
from backends.finetune.tasks.fictional.facts import Attribute, Invented, Kind, Related
from backends.finetune.tasks.fictional.names import listed

KIND = Kind(
    "product",
    (" lamp", " kettle", " pump", " scale", " loom"),
    (
        Attribute(
            "price",
            tuple(f"{price} crowns" for price in range(35, 1500, 15)),
            (
                "How much does the {name} cost?",
                "What is the price of the {name}?",
                "What does a customer pay for the {name}?",
                "Which price is printed on the box of the {name}?",
            ),
            (
                "The {name} costs {value}.",
                "Its price is {value}.",
                "{Value}, tax included.",
                "Customers pay {value} in every shop.",
            ),
        ),
        Attribute(
            "designer",
            PEOPLE,
            (
                "Who designed the {name}?",
                "Whose design is the {name}?",
                "Which engineer drew the {name}?",
                "Who is named as the inventor of the {name}?",
            ),
            (
                "The {name} was designed by {value}.",
                "The design is by {value}.",
                "{Value}, who also holds the patent.",
                "The patent names {value} as its inventor.",
            ),
        ),
        Attribute(
            "factory",
            Invented("town", ("haven", "burg", "minster", "ford"), 16),
            (
                "In which town is the {name} made?",
                "Where is the factory of the {name}?",
                "From where is the {name} shipped?",
                "Where does the {name} come from?",
            ),
            (
                "The {name} is made in {value}.",
                "Its factory is in {value}.",
                "From {value}.",
                "All of them are built in {value} and shipped from there.",
            ),
        ),
        Attribute(
            "material",
            listed(
                "smoked glass|brushed tin|pear wood|black ceramic|woven steel|cork|pressed bamboo|green brass|"
                "recycled nylon|slate|horn|white rubber|waxed linen|soapstone"
            ),
            (
                "What is the {name} made of?",
                "Which material is used for the {name}?",
                "What is the housing of the {name} made from?",
                "Of which material does one recognize the {name}?",
            ),
            (
                "The {name} is made of {value}.",
                "Its housing is of {value}.",
                "{Value}, polished by hand.",
                "It is recognized by its {value}, which no other model has.",
            ),
        ),
        Attribute(
            "department",
            Related("department"),
            (
                "Who in the company is responsible for the {name}?",
                "Which part of the company develops the {name}?",
                "Where do complaints about the {name} go?",
                "Which team looks after the {name}?",
            ),
            (
                "The {name} belongs to the {value}.",
                "Complaints about it go to the {value}.",
                "The {value}, which developed it.",
                "Responsibility lies with the {value} alone.",
            ),
        ),
        Attribute(
            "warranty",
            tuple(f"{months} months" for months in range(7, 67)),
            (
                "How long is the warranty of the {name}?",
                "For how long is a broken {name} replaced free of charge?",
                "After what time does the warranty of the {name} end?",
                "What warranty do customers get with the {name}?",
            ),
            (
                "The warranty of the {name} lasts {value}.",
                "It is replaced free of charge for {value}.",
                "{Value} from the day of purchase.",
                "Customers are covered for {value}, if they keep the receipt.",
            ),
        ),
    ),
)
