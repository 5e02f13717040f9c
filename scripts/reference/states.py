"""The order of commands (preforkmx/protocol/order.py) as a table and as a diagram."""

from __future__ import annotations

import ast
import inspect
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from preforkmx.protocol import order
from preforkmx.protocol.order import LMTP_REPLIES, TABLE, State, Verb
from reference.catalogue import by_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preforkmx.protocol.replies import Reply

MOVES = (
    (State.CONNECTED, State.GREETED, "220"),
    (State.MESSAGE, State.DELIVERY, "end of the message"),
    (State.CHUNK, State.CHUNKS, "end of a chunk"),
    (State.CHUNK, State.DELIVERY, "end of the last chunk"),
    (State.DELIVERY, State.READY, "answer"),
    (State.TLS, State.GREETED, "handshake"),
)
"""What leads from state to state without being a command."""


def table() -> Iterator[str]:
    """Yield the table: a row for each state, a column for the commands that agree in all."""
    columns = _columns()
    yield "| |" + "|".join(f" {'<br>'.join(v.value for v in verbs)} " for verbs in columns) + "|"
    yield "|---" * (len(columns) + 1) + "|"
    for state, row in TABLE.items():
        cells = (_cell(row[verbs[0]]) for verbs in columns)
        yield f"| **{state.value}** | " + " | ".join(cells) + " |"


def in_lmtp() -> Iterator[str]:
    """Yield what the refusals are in LMTP, where they differ."""
    for usual, other in LMTP_REPLIES.items():
        yield f"- {_link(usual)} is {_link(other)} in LMTP."


def states() -> Iterator[str]:
    """Yield each state with what its docstring says."""
    body = next(
        node.body
        for node in ast.parse(inspect.getsource(order)).body
        if isinstance(node, ast.ClassDef) and node.name == "State"
    )
    notes = {
        ast.unparse(node.targets[0]): ast.literal_eval(said.value)
        for node, said in pairwise(body)
        if isinstance(node, ast.Assign) and isinstance(said, ast.Expr)
    }
    for state in State:
        yield f"- **{state.value}**: {' '.join(notes[state.name].split())}"


def diagram() -> Iterator[str]:
    """Yield the diagram's lines, without the commands that change nothing, or end the session."""
    edges: dict[tuple[State, State], list[str]] = {}
    for state, row in TABLE.items():
        for verb, target in row.items():
            if isinstance(target, State) and target not in (state, State.CLOSED):
                edges.setdefault((state, target), []).append(verb.value)
    for start, target, label in MOVES:
        edges.setdefault((start, target), []).append(label)
    places = {state: place for place, state in enumerate(State)}
    yield "stateDiagram-v2"
    yield f"    [*] --> {State.CONNECTED.value}"
    for start, target in sorted(edges, key=lambda edge: (places[edge[0]], places[edge[1]])):
        labels = ", ".join(edges[start, target])
        yield f"    {start.value} --> {target.value}: {labels}"


def _columns() -> list[list[Verb]]:
    def cells(verb: Verb) -> list[State | Reply]:
        return [row[verb] for row in TABLE.values()]

    verbs = list(Verb)
    firsts = [next(i for i, other in enumerate(verbs) if cells(other) == cells(v)) for v in verbs]
    # What only leads to itself agrees too, wherever it stands: NOOP, VRFY, EXPN, HELP.
    in_order = sorted(range(len(verbs)), key=lambda i: (firsts[i], i))
    return [[verbs[i] for i in group] for _, group in groupby(in_order, key=lambda i: firsts[i])]


def _cell(target: State | Reply) -> str:
    return target.value if isinstance(target, State) else f"{target.code} {_link(target)}"


def _link(reply: Reply) -> str:
    for name, row in by_name().items():
        if row.reply is reply:
            return f"[{name}](#{name.lower()})"
    raise ValueError(f"{reply!r} is not in the catalogue")
