"""The pytest plug-in: its options, the ``backend`` fixture and the header.

It is loaded with ``-p conformance.plugin``; the options then exist from any folder. Backends are loaded only when a
selected test of this suite needs one. Clauses: BACK-2, CONF-2..CONF-4, ERR-3.
"""

from collections.abc import Generator
from contextlib import nullcontext
from pathlib import Path

import pytest

import reference
from backends import Backend
from backends.files import printable
from backends.interface import OPTIONAL, x_dtypes
from conformance.clauses import clause_titles, clauses_of
from conformance.controller import COLLECTED, LOADED, SIGNATURES, USE, Controller, is_controller, load_counted
from conformance.gaps import GAPS, PACKAGE, declare_gaps, is_ours, read_gaps, refuse_skipped
from conformance.installation import one_installation, refuse_another_installation
from conformance.profiles import PROFILES, load_profile, profile_of, same_cases_everywhere
from conformance.statement import counts_of, is_whole, make_way, skips_of, statement_of, write_statement
from conformance.tolerances import tolerance_for
from reference.errors import ConfigError, CRMAError, PortStoppedError


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("crma conformance")
    group.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="backend to test: a known name, module:factory of a port, or an executable; may be repeated "
        "(default: reference)",
    )
    group.addoption(
        "--clause", action="append", metavar="ID", help="only the tests of this clause, such as SINK-3; may be repeated"
    )
    group.addoption(
        "--gaps", metavar="FILE", help="TOML file of tests that the port is known to fail, each with reason and link"
    )
    group.addoption(
        "--conformance-report",
        action="append",
        metavar="FILE",
        help="write a report to FILE.html or FILE.json; may be repeated",
    )
    group.addoption("--statement", metavar="FILE", help="write a statement of conformance of the one backend to FILE")
    group.addoption(
        "--profile",
        choices=list(PROFILES),
        help="full (the default); quick: fewer examples and layouts, and failing examples are not shrunk; "
        "random: thousands of examples, of layouts that are drawn freely",
    )
    group.addoption("--quick", action="store_true", help="--profile quick")


@pytest.hookimpl(tryfirst=True)  # hypothesis' own plug-in then finds the profile that --hypothesis-profile names
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "clause(*ids): the clauses of spec/ that the test checks")
    config.addinivalue_line("markers", "xdist_group(name): tests that one process of pytest-xdist runs")
    config.stash[LOADED], config.stash[SIGNATURES], config.stash[USE], config.stash[COLLECTED] = {}, set(), [], []
    try:
        one_installation()
        _configure_options(config)
        load_profile(config)
        if is_controller(config):  # which collects nothing: the workers do
            config.pluginmanager.register(Controller(config, lines_of_backends), "crma-conformance-controller")
            load_backends(config)
    except CRMAError as error:
        raise pytest.UsageError(printable(error, keep="\n")) from None


def _configure_options(config: pytest.Config) -> None:
    """Refuse a mistake before any test runs."""
    gaps = config.getoption("--gaps")
    config.stash[GAPS] = read_gaps(gaps) if gaps else []
    for clause in config.getoption("--clause") or ():
        if clause not in clause_titles():
            raise ConfigError(
                "--clause", got=repr(clause), allowed="an id of spec/, such as SINK-3", remedy="see spec/README.md"
            )
    if config.getoption("--statement") and len(chosen_backends(config)) != 1:
        raise ConfigError(
            "--statement",
            got=f"{len(chosen_backends(config))} backends",
            allowed="one --backend",
            remedy="make one run and one statement for each",
        )
    if config.getoption("--statement") and not hasattr(config, "workerinput"):
        make_way(config.getoption("--statement"))
    if gaps and config.getoption("runxfail"):
        raise ConfigError(
            "--gaps",
            got="--runxfail, under which a gap that has closed would not fail the run",
            allowed="one of the two",
            remedy="leave --runxfail out",
        )
    reports = config.getoption("--conformance-report")
    if reports and (is_controller(config) or hasattr(config, "workerinput")):
        raise ConfigError(
            "--conformance-report",
            got="several processes (-n)",
            allowed="one process, which sees every comparison",
            remedy="-n 0",
        )
    if reports:
        from conformance.report.files import check_report_paths
        from conformance.report.ledger import ReportPlugin

        check_report_paths(reports)
        config.pluginmanager.register(ReportPlugin(config), "crma-conformance-report")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The suite's own tests are of no port: they run where they are asked for by name, or where no path is given."""
    selftest = PACKAGE / "selftest"
    if collection_path.resolve() != selftest:
        return None
    asked = any(Path(argument.partition("::")[0]).resolve().is_relative_to(selftest) for argument in config.args)
    return None if asked else True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames and is_ours(metafunc.definition):
        metafunc.parametrize("backend", chosen_backends(metafunc.config), indirect=True, scope="session")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before any other plug-in leaves tests out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    """Gaps are looked up in all that was collected; backends are loaded once for what is left after the selection.

    A failure of either is one message and exit code 4.
    """
    path = config.getoption("--gaps")
    config.stash[COLLECTED] = [item.nodeid for item in items if is_ours(item)]
    try:
        refuse_another_installation(items)
        declare_gaps(config.stash[GAPS], items, path, whole=not any("::" in argument for argument in config.args))
    except CRMAError as error:
        if not hasattr(config, "workerinput"):
            raise pytest.UsageError(printable(error, keep="\n")) from None
        getattr(config, "workeroutput")["use"] = printable(error, keep="\n")  # noqa: B009  the controller ends the run
        items[:] = []
    wanted = set(config.getoption("--clause") or ())
    quick = profile_of(config) == "quick"
    left_out = [
        item
        for item in items
        if (wanted and not wanted & set(clauses_of(item))) or (quick and is_ours(item) and not is_quick(item))
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    for item in items:  # those that draw from the same short list of sizes, for which one process is to compile
        if is_ours(item) and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("properties"))
    yield
    if not any("backend" in getattr(item, "fixturenames", ()) and is_ours(item) for item in items):
        return
    load_backends(config)


def load_backends(config: pytest.Config) -> None:
    """All that ``--backend`` names. Raises: pytest.UsageError, one message and status 4."""
    for name in chosen_backends(config):
        try:
            port = config.stash[LOADED][name] = load_counted(config, name)
            tolerance_for("adapter y - x", port.parameter_dtype, "forward")
        except CRMAError as error:
            raise pytest.UsageError(printable(f"--backend={name}: {error}", keep="\n")) from None


def is_quick(item: pytest.Item) -> bool:
    """Whether ``--quick`` runs a test: what it is given of layouts and of golden vectors says so. Clause: CONF-11."""
    callspec = getattr(item, "callspec", None)
    return all(getattr(value, "quick", True) for value in callspec.params.values()) if callspec else True


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    return lines_of_backends(config)


def lines_of_backends(config: pytest.Config) -> list[str]:
    """The evidence of CONF-2, one line a backend."""
    return [
        printable(
            f"backend {name}: {port.name}, {port.version}, on {port.device}, parameters in {port.parameter_dtype}, "
            f"x in {', '.join(x_dtypes(port))}{_offers(port)}, against spec {reference.SPEC_VERSION}"
        )
        for name, port in config.stash[LOADED].items()
    ]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode, config: pytest.Config
) -> None:
    if (path := config.getoption("--statement")) and not hasattr(config, "workerinput") and config.stash[LOADED]:
        counts = counts_of(terminalreporter)
        (port,) = config.stash[LOADED].values()
        status = 4 if config.stash[USE] else int(exitstatus)
        whole = is_whole(config, config.stash[COLLECTED], counts)
        gaps, skipped = list(config.stash[GAPS]), skips_of(terminalreporter)
        content = statement_of(config, port, gaps, counts, skipped, status, whole=whole)
        write_statement(path, content)
        terminalreporter.write_line(f"statement: {content['outcome']}, written to {path}")
    if count := len(config.stash[SIGNATURES]):
        terminalreporter.write_line(f"shapes: {count} distinct (function, shapes, dtypes and K of a call)")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        seen: set[str] = session.config.stash[SIGNATURES]
        session.config.workeroutput["signatures"] = sorted(seen)
        session.config.workeroutput["collected"] = session.config.stash[COLLECTED]


def _offers(backend: Backend) -> str:
    offered = [function for function in OPTIONAL if hasattr(backend, function)]
    alone = "" if getattr(backend, "thread_safe", True) else ", not thread-safe"
    return (f", with {' and '.join(offered)}" if offered else "") + alone


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A program that died or hangs ends the run: every test after it would fail for the same reason."""
    try:
        with same_cases_everywhere() if is_ours(pyfuncitem) else nullcontext():
            return (yield)
    except PortStoppedError as error:
        said = printable(f"--backend={error}", keep="\n")
        if hasattr(pyfuncitem.config, "workeroutput"):  # where an exit would be an error of xdist itself
            pyfuncitem.config.workeroutput["use"] = pyfuncitem.session.shouldstop = said
            raise
        pytest.exit(said, returncode=pytest.ExitCode.USAGE_ERROR)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outermost: after pytest has made a skip or an expected failure of it
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_skipped(item, report)
    return report


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend named by ``--backend``. Outside this suite's folder: the first of them."""
    name = getattr(request, "param", chosen_backends(request.config)[0])
    loaded = request.config.stash[LOADED]
    if name not in loaded:
        loaded[name] = load_counted(request.config, name)
    return loaded[name]


def chosen_backends(config: pytest.Config) -> list[str]:
    """The names given, without repetitions."""
    return list(dict.fromkeys(config.getoption("--backend") or ["reference"]))
