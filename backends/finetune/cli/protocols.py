"""``crma protocols``: the protocols that come with this package, with their descriptions."""


def protocols() -> None:
    """Print them."""
    from rich.padding import Padding

    from backends.finetune.protocols.protocol import load_protocol, protocols_folder
    from backends.finetune.report.terminal import Terminal

    console = Terminal(highlight=False)
    for path in sorted(protocols_folder().glob("*.toml")):
        protocol = load_protocol(path.stem)
        order = {"given": "", "all": ", in every order", "drawn": ", in an order drawn by the seed"}[protocol.orderings]
        console.print(path.stem, style="bold")
        for line in (
            protocol.description,
            f"{protocol.model}; {', '.join(protocol.tasks)}{order}; {protocol.train} examples each, {protocol.holdout}"
            f" held out; conditions {', '.join(protocol.conditions)}; seeds {', '.join(map(str, protocol.seeds))}",
            protocol.source and f"After: {protocol.source}.",
        ):
            if line:
                console.print(Padding(line, (0, 0, 0, 2)))
        console.print()
    console.print("--model takes another model of the paper's Table 2 by its Hugging Face id, or a local folder.")
