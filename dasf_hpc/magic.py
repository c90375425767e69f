"""In IPython and Jupyter: the cell magic ``%%record``, which records what a cell does on a cluster.

IPython is no dependency: this module is loaded by ``%load_ext dasf_hpc`` alone.
"""

from __future__ import annotations

import ast
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, magics_class, needs_local_scope
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from dasf_hpc.block import RecordedRun, record


@magics_class
class RecordMagics(Magics):
    """The magics of dasf-hpc."""

    @magic_arguments()
    @argument("directory", nargs="?", default="runs", help="where the run's directory is made")
    @argument("--client", help="name of the Dask client's variable; default: the current client")
    @argument("--run", default="run", help="name of the variable for the run; default: run")
    @argument(
        "--stacks",
        choices=("dask", "off"),
        default="dask",
        help="whether to sample the Python calls of tasks and event loops; default: dask",
    )
    @argument("--no-report", action="store_true", help="write no report.html")
    @needs_local_scope
    @cell_magic
    def record(
        self, line: str, cell: str, local_ns: dict[str, Any] | None = None
    ) -> RecordedRun | None:
        """Record what a cell does on a Dask cluster and show it below the cell."""
        given = parse_argstring(self.record, line)
        names = self.shell.user_ns | (local_ns or {})
        if given.client is not None and given.client not in names:
            raise UsageError(f"%%record --client {given.client}: there is no such variable")
        client = None if given.client is None else names[given.client]
        with record(
            client,
            given.directory,
            name="notebook",
            stacks=given.stacks,
            report=not given.no_report,
        ) as run:
            self.shell.user_ns[given.run] = run
            self._execute(cell)
        return run

    def _execute(self, cell: str) -> None:
        """Run a cell as IPython does, its last expression shown; what it raises passes through."""
        shell = self.shell
        source = shell.transform_cell(cell)
        name = shell.compile.cache(source, shell.execution_count, raw_code=cell)
        *body, last = shell.compile.ast_parse(source, filename=name).body or [ast.Pass()]
        if isinstance(last, ast.Expr) and not cell.rstrip().endswith(";"):
            parts: list[tuple[Any, str]] = [
                (ast.Module(body, []), "exec"),
                (ast.Interactive([last]), "single"),
            ]
        else:
            parts = [(ast.Module([*body, last], []), "exec")]
        for tree, mode in parts:
            exec(compile(ast.fix_missing_locations(tree), name, mode), shell.user_ns)


def load(ipython: Any) -> None:
    """Register the magics."""
    ipython.register_magics(RecordMagics)
