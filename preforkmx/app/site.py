"""Site: one configuration, with an application where ``--app`` names one."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from preforkmx.app import chain
from preforkmx.app.build import Builder
from preforkmx.app.cores import usable_cores
from preforkmx.app.demo import demo_document
from preforkmx.app.tls import make_context
from preforkmx.config.load import load, read_document
from preforkmx.errors import ConfigError
from preforkmx.master.plan import Plan, StorePlan
from preforkmx.session.listener import Listener
from preforkmx.workers.privileges import Identity
from preforkmx.workers.seat import WorkerSeat

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from preforkmx.config.load import Loaded
    from preforkmx.server import Server
    from preforkmx.state.decisions import Store


def load_configuration(
    path: Path | None, app: str | None, environ: Mapping[str, str], *, files: bool = True
) -> Loaded:
    """Return the configuration of `path`, or the demo's where it is None.

    :param app: ``MODULE:OBJECT`` of an application, which gives host name, hooks and handler.
    :param files: look at the files that the configuration names.
    :raises ConfigError: with every problem.
    """
    document = demo_document(app=app is not None) if path is None else read_document(path)
    return load(
        document, environ, app=app is not None, loopback_only=path is None, look_at_files=files
    )


def store_socket(control: Path) -> Path:
    """Return the socket of the store process, which stands beside the control socket."""
    return control.with_name(f"{control.name}.store")


def load_plan(path: Path | None, app: str | None, environ: Mapping[str, str]) -> Plan:
    """Return the plan of :class:`Site`; the arguments are those of :meth:`Site.read`."""
    return Site.read(path, app, environ).plan()


@dataclass(frozen=True, slots=True)
class Site:
    """One configuration as a server of it needs it; a reload makes the next one."""

    loaded: Loaded
    app: str | None
    """``MODULE:OBJECT`` of an application, or None."""
    tls: ssl.SSLContext | None
    """Made here, before any fork: see :func:`preforkmx.app.tls.make_context`."""

    @classmethod
    def read(cls, path: Path | None, app: str | None, environ: Mapping[str, str]) -> Site:
        """Read the configuration at `path`, or the demo's where it is None.

        Nothing of the site's own code is imported.

        :raises ConfigError: with every problem.
        """
        loaded = load_configuration(path, app, environ)
        tls = loaded.config.tls
        try:
            context = None if tls is None else make_context(tls)
        except OSError as error:
            raise ConfigError([loaded.problem(("tls",), f"cannot be used: {error}")]) from error
        return cls(loaded, app, context)

    @property
    def control(self) -> Path:
        """The control socket."""
        return self.loaded.config.admin.control

    def plan(self) -> Plan:
        """Return what the master runs.

        :raises ConfigError: this process may not become `workers.user`.
        """
        config = self.loaded.config
        workers = config.workers
        return Plan(
            hostname=config.hostname or socket.gethostname(),
            listeners=tuple(
                Listener(**{key: getattr(table, key) for key in type(table).model_fields})
                for table in config.listener
            ),
            count=usable_cores() if workers.count == "auto" else workers.count,
            loop=workers.loop,
            build_server=self.build_server,
            check=self.check,
            store=self._store_plan(),
            state_url=chain.shown(self.loaded.config.state),
            drain_seconds=workers.drain_seconds,
            hang_seconds=workers.hang_seconds,
            max_sessions=workers.max_sessions,
            log_format=config.log.format,
            log_level=config.log.level,
            lame_duck_seconds=workers.lame_duck_seconds,
            recycle_after_messages=workers.recycle_after_messages,
            identity=self._identity(),
            admin_address=config.admin.address,
        )

    def _identity(self) -> Identity | None:
        workers = self.loaded.config.workers
        if not workers.user:
            return None
        path = ("workers", "user")
        try:
            identity = Identity.of(workers.user, workers.group)
        except LookupError as error:
            raise ConfigError([self.loaded.problem(path, str(error))]) from None
        if not identity.can_be_taken:
            problem = "takes root: who starts the server is another user"
            hint = "start it as root, or as that user"
            raise ConfigError([self.loaded.problem(path, problem, hint, value=workers.user)])
        return identity

    def check(self) -> None:
        """Build a server as a worker does, and throw it away: imports the site's code.

        :raises ConfigError: with everything that a worker would refuse.
        """
        self.build_server(WorkerSeat(slot=0, count=1, generation=0))

    def build_server(self, seat: WorkerSeat, *, decisions: Store | None = None) -> Server:
        """Return the server of one worker: imports the site's code.

        :param decisions: takes the place of the store that ``[state] url`` names.
        :raises ConfigError: with every reason why there is none.
        """
        store = self._store_plan()
        return Builder(
            self.loaded,
            self.app,
            tls=self.tls,
            store_socket=None if store is None else store.socket,
            seat=seat,
            store=decisions,
        ).build()

    def _store_plan(self) -> StorePlan | None:
        """Return the store process; it counts too where Redis does, while that is away."""
        scheme, _, database = self.loaded.config.state.url.partition(":")
        if scheme == "local":
            return None
        beside = self.control.with_name
        if scheme == "embedded" and database:
            path = Path(database)
        elif self.loaded.config.workers.user:
            # SQLite makes files beside it: in a folder of that user's own, since whoever may
            # write to the control socket's folder could put another socket in its place.
            path = beside(f"{self.control.name}.state") / "store.db"
        else:
            path = beside(f"{self.control.name}.db")
        return StorePlan(socket=store_socket(self.control), database=path)
