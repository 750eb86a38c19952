"""Invented policies of an invented company: what they ask of the staff."""

from __future__ import annotations

from backends.finetune.tasks.fictional.departments import PEOPLE
from backends.finetune.tasks.fictional.facts import Attribute, Kind
from backends.finetune.tasks.fictional.names import listed

KIND = Kind(
    "policy",
    (" policy", " directive", " guideline"),
    (
        Attribute(
            "subject",
            listed(
                "business travel|bicycles in the yard|desk plants|overtime|lost keys|gifts from suppliers|"
                "parental leave|visitors at night|use of the kitchen|press interviews|secondhand furniture|"
                "dogs at work|training abroad|window blinds|expense receipts"
            ),
            (
                "What does the {name} regulate?",
                "What is the subject of the {name}?",
                "Which matter falls under the {name}?",
                "What is the {name} about?",
            ),
            (
                "The {name} regulates {value}.",
                "Its subject is {value}.",
                "{Value}, in all offices of the company.",
                "It was written to settle all questions about {value}.",
            ),
        ),
        Attribute(
            "approver",
            PEOPLE,
            (
                "Who grants exceptions from the {name}?",
                "Who has to approve a request under the {name}?",
                "Whom does an employee ask about the {name}?",
                "Who keeps watch over the {name}?",
            ),
            (
                "Requests under the {name} are approved by {value}.",
                "Exceptions are granted by {value}.",
                "{Value}, and nobody else.",
                "Employees turn to {value}, who decides within a day.",
            ),
        ),
        Attribute(
            "limit",
            tuple(f"{amount} crowns" for amount in range(20, 900, 20)),
            (
                "Up to which amount does the {name} allow spending without a request?",
                "What is the spending limit of the {name}?",
                "How much may be spent under the {name} without approval?",
                "From which sum on does the {name} ask for approval?",
            ),
            (
                "The {name} sets a limit of {value}.",
                "Up to {value} may be spent without approval.",
                "{Value}; above that a request is needed.",
                "The limit is {value} per person and month.",
            ),
        ),
        Attribute(
            "notice",
            tuple(f"{days} days" for days in range(2, 46)),
            (
                "How much notice does the {name} ask for?",
                "How early must a request under the {name} be made?",
                "How many days ahead do employees have to apply under the {name}?",
                "What is the deadline for requests under the {name}?",
            ),
            (
                "The {name} asks for {value} of notice.",
                "A request must be made {value} ahead.",
                "{Value} before the date in question.",
                "Employees apply at least {value} in advance.",
            ),
        ),
        Attribute(
            "form",
            tuple(f"form {letter}-{number}" for letter in "BFKRW" for number in range(11, 100, 8)),
            (
                "Which form is used for a request under the {name}?",
                "What has to be filled in under the {name}?",
                "On which form does one apply under the {name}?",
                "What paperwork belongs to the {name}?",
            ),
            (
                "The {name} uses {value}.",
                "A request is made on {value}.",
                "{Value}, in two copies.",
                "Employees fill in {value} and hand it to their head.",
            ),
        ),
    ),
)
