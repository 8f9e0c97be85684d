"""Simulation: agents that train, upload, are judged and paid, round by round.

    behaviours     who is dishonest, and how much; `dishonest_data` and `dishonest_uploads` hold
                   one function per behaviour
    participation  who takes part in a round
    training       what an agent does on its own data: local epochs of an optax optimizer
    round          train, upload, judge, serve, pay: the functions of a round
    evaluation     the metrics of models on whole data sets
    federations    Federation(init, step), which `making` puts together from its parts
    looking        what a mechanism may look at
    loop           the rounds of a run, compiled in chunks
    either         one program for a short run's rounds and those of its agents alone
    progress       how far a run is: History, one row per round

`states` holds what the next round needs, `first` the first parameters, `each` numbers that may
differ between agents; `memory` computes how much memory a round needs, and `optimizers` checks
that every agent can have its own state of an optax optimizer.
"""

from fairjax.simulation import behaviours
from fairjax.simulation.behaviours import (
    DATA,
    HONEST,
    UPLOADS,
    Behaviour,
    Memory,
    assign,
    change_data,
    change_uploads,
    listed,
    names,
)
from fairjax.simulation.evaluation import measure, outputs, utility
from fairjax.simulation.federations import Federation
from fairjax.simulation.first import (
    THREEFRY,
    as_key,
    first_params,
    first_statistics,
    given_params,
)
from fairjax.simulation.looking import check_held_out, follows_length
from fairjax.simulation.loop import PROGRAMS, Rounds, history, play
from fairjax.simulation.making import federation
from fairjax.simulation.memory import bytes_needed, bytes_per_agent, spare_maps
from fairjax.simulation.optimizers import COUNTS, check_server_optimizer
from fairjax.simulation.participation import check_fits, check_participation
from fairjax.simulation.progress import (
    Events,
    History,
    Progress,
    check_paid,
    no_rows,
    warn_of_honest,
)
from fairjax.simulation.round import judge
from fairjax.simulation.states import Record, State

__all__ = [
    "COUNTS", "DATA", "HONEST", "PROGRAMS", "THREEFRY", "UPLOADS", "Behaviour", "Events",
    "Federation", "History", "Memory", "Progress", "Record", "Rounds", "State", "as_key", "assign",
    "behaviours", "bytes_needed", "bytes_per_agent", "change_data", "change_uploads", "check_fits",
    "check_held_out", "check_paid", "check_participation", "check_server_optimizer", "federation",
    "first_params", "first_statistics", "follows_length", "given_params", "history", "judge",
    "listed", "measure", "names", "no_rows", "outputs", "play", "spare_maps", "utility",
    "warn_of_honest",
]  # fmt: skip
