"""Upgrade: the try that comes before a re-execution in place (:mod:`preforkmx.master.reexec`)."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from preforkmx.errors import BootError
from preforkmx.master.hiring import CHECK_SECONDS
from preforkmx.master.procedure import Steps, Wait
from preforkmx.master.reexec import Output, Program, become_trial
from preforkmx.master.starting import REAP_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from preforkmx.master.child import Child
    from preforkmx.master.children import Children
    from preforkmx.master.handover import Handover
    from preforkmx.workers.channel import Channel
    from preforkmx.workers.heartbeat import Cell

_logger = logging.getLogger("preforkmx.master")


class Upgrade:
    """One upgrade, up to the moment in which nothing speaks against it.

    :param children: forks the try.
    :param handover: returns the state as it is now.
    :param foreign: what a process closes that is forked meanwhile.
    :param program: what is to be the master.
    :ivar problems: why it is refused; empty when the try went well.
    """

    def __init__(
        self,
        children: Children,
        handover: Callable[[], Handover],
        *,
        generation: int,
        foreign: list[Callable[[], None]],
        program: Program | None = None,
    ) -> None:
        self._children = children
        self._handover = handover
        self._generation = generation
        self._foreign = foreign
        self.program = Program.running() if program is None else program
        self.problems: list[str] = ["the upgrade was broken off: the server is stopping"]

    def steps(self) -> Steps:
        """Go through the try."""
        try:
            output = Output()
        except OSError as error:
            self._refuse([f"there is no memory to be had: {error}"])
            return
        try:
            trial = self._fork(output)
        except (OSError, BootError) as error:
            output.close()
            self._refuse([f"no process could be forked: {error}"])
            return
        # From here on a worker may be forked, which would keep the memory for its life.
        self._foreign.append(output.close)
        try:
            yield Wait(lambda: not trial.alive, seconds=CHECK_SECONDS + REAP_SECONDS)
            self._refuse(_reasons(trial, output))
        finally:
            trial.kill()
            self._foreign.remove(output.close)
            output.close()

    def _fork(self, output: Output) -> Child:
        handover, program = self._handover(), self.program
        environ = dict(os.environ)

        def run(channel: Channel, _cell: Cell) -> int:
            return become_trial(program, handover, environ, output, channel)

        return self._children.start(
            "upgrade check", run, generation=self._generation, boot_seconds=CHECK_SECONDS
        )

    def _refuse(self, problems: list[str]) -> None:
        self.problems = problems
        for problem in problems:
            _logger.error("the upgrade is refused: %s", problem)


def _reasons(trial: Child, output: Output) -> list[str]:
    if trial.problems:
        return trial.problems
    if trial.alive:
        return ["the new program's check cannot be ended"]
    if trial.status == 0 and trial.ready_at is not None:
        return []
    return [f"the new program failed its check: {trial.end}", *output.lines()]
