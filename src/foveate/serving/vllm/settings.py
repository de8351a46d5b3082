"""The settings of a server, from its start-up arguments and from the environment, and what they make of a request."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...budget import AUTO_HELP, Budget, Conversation, Scope
from ...config import PruningConfig, check_version, scope_of
from ...errors import BudgetError, MethodError, RequestError, near_miss
from ...methods.toolkit.in_encoder import InEncoder
from ...methods.toolkit.settings import AT_LAYER, ENCODER_BLOCK, method_of, settings_of
from ...models.adapter import MOST_QUERIES, check_queries
from .request import PruneRequest

REQUEST_KEYS = ("foveate_method", "foveate_keep", "foveate_scope", "foveate_query")
SETTINGS = {"method": "FOVEATE_METHOD", "keep": "FOVEATE_KEEP", "scope": "FOVEATE_SCOPE", "query": "FOVEATE_QUERY"}
OWN_TEXT = "prompt"  # the query that stands for the prompt's own text
CONFIG = "FOVEATE_CONFIG"  # names the file of a PruningConfig in the environment
OTHER_VARIABLES = ("FOVEATE_HOME", "FOVEATE_VLLM_ENV", "FOVEATE_FAULTS")  # of foveate, but not settings of a server
_PREFIX = "FOVEATE_"
# What Kubernetes puts into the environment of containers beside a service that is called foveate, or foveate-vllm.
_SERVICE_LINKS = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT(_\d+_\w+)?$")
_ONE_METHOD = (
    "a server prunes before the LLM, by one method; give one instead of several, or beside it methods inside the "
    'vision encoder, such as {"name": "divprune", "encoder_block": 8}.'
)
_LIKE_OURS = 0.8  # how alike an argument and one of ours are, from 0 to 1, for the former to be the latter misspelled


def find_ours(arguments: Mapping[Any, Any], within: str | None = None) -> Iterator[tuple[str, str | None]]:
    """The arguments that are meant for foveate, misspelled ones too, each with the argument that it is inside of."""
    for key, value in arguments.items():
        spelled = str(key).lower().replace("-", "_")
        if spelled.startswith("foveate") or difflib.get_close_matches(spelled, REQUEST_KEYS, n=1, cutoff=_LIKE_OURS):
            yield str(key), within
        elif isinstance(value, Mapping):
            yield from find_ours(value, within or str(key))


def check_variables(environ: Mapping[str, str]) -> None:
    """Raise RequestError for a variable of foveate's that nothing reads, because its name is misspelled."""
    known = (*SETTINGS.values(), CONFIG, *OTHER_VARIABLES)
    for name, value in environ.items():
        if not value or name in known or not name.upper().startswith(_PREFIX) or _SERVICE_LINKS.search(name):
            continue
        # Compared without what all of them begin with, which would make all of them alike.
        short = {other.removeprefix(_PREFIX): other for other in known}
        close = difflib.get_close_matches(name.upper().removeprefix(_PREFIX), short, n=1)
        hint = f"did you mean {short[close[0]]}?" if close else "unset it, or rename what is not for foveate."
        raise RequestError(f"nothing reads the environment variable {name}; {hint} Known: {', '.join(sorted(known))}.")


def _of_one_method(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the hyperparameters of each method under its name, read as the types that they have.

    Raises:
        FoveateError: for several methods, hyperparameters that are given twice, and what cannot be read.
    """
    check_version(data)
    found = {key: value for key, value in data.items() if key != "version"}
    given: Any = found.get("hyperparameters", {})
    if not isinstance(given, Mapping) or not all(isinstance(values, Mapping) for values in given.values()):
        raise RequestError(
            f'hyperparameters={given!r} must be of methods by name, such as {{"idpruner": {{"balance": 0.7}}}}.'
        )
    hyperparameters = {name: settings_of(name, values) for name, values in given.items()}
    method = found.get("method")
    if isinstance(method, Mapping) and "compose" in method:
        raise RequestError(_ONE_METHOD)
    if isinstance(method, (list, tuple)) or (isinstance(method, Mapping) and ENCODER_BLOCK in method):
        method = _split_places(found)
    elif method is not None:
        found["inside"] = ()
    if isinstance(method, Mapping):
        made = method_of(method)
        if AT_LAYER in method:
            raise RequestError(f"{made.name} prunes inside the LLM, which vLLM cannot do; leave out {AT_LAYER}.")
        own = settings_of(made.name, {key: value for key, value in method.items() if key != "name"})
        if own and made.name in hyperparameters:
            raise RequestError(f"hyperparameters of {made.name} are given twice; leave one of them out.")
        hyperparameters |= {made.name: own} if own else {}
        found["method"] = made.name
    return {**found, "hyperparameters": hyperparameters} if hyperparameters else found


def _split_places(found: dict[str, Any]) -> Any:
    """Put the methods inside the vision encoder under ``"inside"``, and `keep` in the order of a forward.

    Returns:
        the data of the method before the LLM; where there is none, ``"method"`` is the name of the last one inside.
    """
    given, keep = found["method"], found.get("keep")
    several = isinstance(given, (list, tuple))
    parts = list(given) if several else [given]
    made: list[Any] = [method_of(one) for one in parts]
    inside = sorted((i for i, one in enumerate(made) if isinstance(one, InEncoder)), key=lambda i: made[i].block)
    others = [i for i, one in enumerate(made) if not isinstance(one, InEncoder)]
    if len(others) > 1 or not made:
        raise RequestError(_ONE_METHOD)
    if len({made[i].block for i in inside}) < len(inside):
        raise RequestError("two methods at one block of the vision encoder cannot be combined; give each its own.")
    if several and isinstance(keep, (list, tuple)):
        if len(keep) != len(made):
            raise BudgetError(f"give one keep value for each method: got {len(keep)} for {len(made)}.")
        found["keep"] = tuple(keep[i] for i in (*inside, *others))
    found["inside"] = tuple(made[i] for i in inside)
    found["method"] = parts[others[0]] if others else made[inside[-1]].name
    return found["method"]


@dataclass(frozen=True)
class ServerSettings:
    """The server's defaults, from ``--hf-overrides '{"foveate": {...}}'`` and from the environment.

    Both take the data of a `foveate.PruningConfig`; the environment names its file by ``FOVEATE_CONFIG``.

    Args:
        method: the method of requests that name none.
        keep: the budget of requests that give none; 1.0 prunes nothing.
        scope: the scope of requests that give none; None leaves it to the model family.
        query: the question of requests that give none, for methods that choose by text: ``"prompt"`` or a text.
        hyperparameters: for each method name the values of its fields. Requests choose among methods but cannot set
            hyperparameters, because some of them name files.
        encoder_queries: as for `foveate.prune`; of all requests.
        positions: what the server must number positions by; None for what vLLM does with the model.
        feature_cache_gb: host memory, in GiB for each process of the engine, for images as the encoder made them,
            which are kept where they are likely to be chosen from again; 0 keeps none.
        inside: methods inside the vision encoder, by rising block, for requests that name no method; `keep` has then a
            value for each, and one for `method` unless that is the name of the last of them.
        given: which of these were set.
    """

    method: str = "idpruner"
    keep: Any = 1.0
    scope: Any = None
    query: str | None = None
    hyperparameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    encoder_queries: int = MOST_QUERIES
    positions: str | None = None
    feature_cache_gb: float = 0.5
    inside: tuple[InEncoder, ...] = ()
    given: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_queries(self.encoder_queries)
        size = self.feature_cache_gb
        if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 <= size < math.inf:
            raise RequestError(f"feature_cache_gb={size!r} is out of range; give GiB of host memory, or 0 for none.")

    @classmethod
    def read(cls, overrides: Any, environ: Mapping[str, str]) -> ServerSettings:
        """From the value of the key ``foveate`` in the overrides (or None), which has precedence, and `environ`.

        Raises:
            FoveateError: for a key or variable that is not known or a value that cannot be.
        """
        check_variables(environ)
        given = {} if overrides is None else overrides
        if not isinstance(given, Mapping):
            raise RequestError(
                f"the server's foveate settings {given!r} must be a mapping such as "
                '{"method": "idpruner", "keep": 0.25}.'
            )
        known = ["version", *SETTINGS, "hyperparameters", "encoder_queries", "positions", "feature_cache_gb"]
        for key in given:
            if key not in known:
                raise RequestError(f"the server's foveate settings have an unknown key {key!r}{near_miss(key, known)}")
        from_environ: dict[str, Any] = {key: environ[name] for key, name in SETTINGS.items() if environ.get(name)}
        if path := environ.get(CONFIG):
            if from_environ:
                raise RequestError(
                    f"{CONFIG} says what {SETTINGS[next(iter(from_environ))]} says, too; unset one of them."
                )
            from_environ = PruningConfig.from_pretrained(path).to_dict()
        merged = _of_one_method(from_environ) | _of_one_method(given)
        settings = cls(**merged, given=frozenset(merged))
        settings.resolve({})  # refuses bad values
        return settings

    def resolve(self, asked: Mapping[str, Any], default_scope: Scope = "image") -> PruneRequest | None:
        """What to do for a request with these keyword arguments; None when everything is kept.

        Raises:
            FoveateError: for a value that cannot be.
        """
        for key, within in find_ours(asked):
            if within is not None:
                raise RequestError(f"nothing reads {key!r} inside of {within!r}; give it beside {within!r}.")
            if key not in REQUEST_KEYS:
                raise RequestError(f"unknown argument {key!r}{near_miss(key, REQUEST_KEYS)}")
        method = asked.get("foveate_method", self.method)
        keep = asked.get("foveate_keep", self.keep)
        scope = asked.get("foveate_scope", default_scope if self.scope is None else self.scope)
        if not isinstance(method, str):
            raise MethodError(f"foveate_method={method!r} must be the name of one method, such as 'idpruner'.")
        query = _query(asked.get("foveate_query", self.query))
        inside = () if "foveate_method" in asked else self.inside
        if method in (one.name for one in self.inside) and not inside:
            raise MethodError(
                f"foveate_method={method!r} prunes inside the vision encoder, which a server does for requests that "
                "name no method; leave foveate_method out, or name a method that prunes before the LLM."
            )
        budgets = [_budget(one, scope) for one in self._amounts(keep, inside, "foveate_keep" in asked)]
        _check_falling(budgets)
        dropping = [budget for budget in budgets if not budget.keeps_all]
        if not dropping:
            for key in ("foveate_method", "foveate_query"):
                if asked.get(key) is not None and "foveate_keep" not in asked:
                    raise BudgetError(
                        f"{key}={asked[key]!r} is given, but not how much to keep; add foveate_keep, such as 0.25."
                    )
            return None
        encoder = tuple(budget.keep for budget in budgets[: len(inside)])
        if all(keep == 1.0 for keep in encoder):
            return PruneRequest(method, dropping[-1], query)
        if isinstance(dropping[-1].scope, Conversation):
            raise BudgetError(
                "what leaves the vision encoder cannot depend on the other images of a prompt; use "
                "foveate_scope='image' or 'frame', or name a foveate_method, which then prunes behind the encoder."
            )
        ends_inside = budgets[-1].keeps_all or len(budgets) == len(inside)
        return PruneRequest(inside[-1].name if ends_inside else method, dropping[-1], query, encoder=encoder)

    def _amounts(self, keep: Any, inside: tuple[InEncoder, ...], requested: bool) -> list[Any]:
        """What each stage is to keep: one value for each, or the same for all."""
        stages = len(inside) + (not inside or self.method != inside[-1].name)
        if not isinstance(keep, (list, tuple)) or not self.inside:
            return [keep] * stages
        if not inside and not requested:
            return [keep[-1]] if keep else [keep]  # a method that a request names, by the server's default
        if not inside or len(keep) != stages:
            raise BudgetError(f"give one keep value for each method: got {len(keep)} for {stages}.")
        return list(keep)

    def check_positions(self, mrope: bool) -> None:
        """Raise RequestError where vLLM numbers the positions of a model otherwise than the settings ask.

        Args:
            mrope: whether the model has M-RoPE positions, which stay; vLLM numbers others by their place in the prompt.
        """
        usual = "original" if mrope else "compact"
        if self.positions not in (None, usual):
            raise RequestError(
                f"positions={self.positions!r} cannot be had: vLLM numbers this model's by {usual!r}; leave it out."
            )

    def fingerprint(self, request: PruneRequest) -> dict[str, str]:
        """What tells this request's images from the same images pruned otherwise, in every cache of the server."""
        made = {"foveate": str(request)}
        if values := self.hyperparameters.get(request.method):
            made["foveate_hyperparameters"] = json.dumps(values, sort_keys=True, default=str)
        if request.encoder:
            made["foveate_encoder"] = f"{request.encoder} {self.inside}"
        if self.encoder_queries != MOST_QUERIES:
            made["foveate_encoder_queries"] = str(self.encoder_queries)
        return made


def _budget(keep: Any, scope: object) -> Budget:
    try:
        budget = Budget(keep, _scope(scope))
    except BudgetError as error:
        raise BudgetError(str(error).replace(AUTO_HELP, "")) from None
    if budget.by_content:
        raise BudgetError(
            "keep='auto' finds how many tokens stay when an image is encoded, but vLLM needs to know before; give "
            "a fraction such as 0.25 or a token count such as 144."
        )
    return budget


def _check_falling(budgets: Sequence[Budget]) -> None:
    """Raise BudgetError where a stage is to keep more of the unpruned than one before it leaves."""
    least: dict[type, Budget] = {}  # a share and a number of tokens cannot be compared without an image
    for budget in budgets:
        if not budget.keeps_all:
            left = least.setdefault(type(budget.keep), budget)
            if budget.keep > left.keep:  # type: ignore[operator]
                raise BudgetError(
                    f"a method cannot keep {budget}, as one before it leaves {left}; give falling budgets, such as "
                    "keep=[0.5, 0.25]."
                )
            least[type(budget.keep)] = budget


def _scope(scope: object) -> Scope:
    """A scope that vLLM can have, from a name, the data of one, or itself."""
    found = scope_of(scope) if isinstance(scope, Mapping) and "conversation" in scope else scope
    if found == "conversation":
        return Conversation()
    if isinstance(found, Conversation) or (isinstance(found, str) and found in ("image", "frame")):
        return found  # type: ignore[return-value]
    raise BudgetError(
        f"foveate_scope={scope!r} is unknown; use 'image' or 'frame', or 'conversation', also as "
        '{"conversation": {"decay": 0.5}}.'
    )


def _query(query: object) -> str | None:
    # Halves of pairs of UTF-16, which JSON can carry and tokenizers cannot read, are not text.
    if query is None or (isinstance(query, str) and query.strip() and not re.search("[\ud800-\udfff]", query)):
        return query
    raise RequestError(f"foveate_query={query!r} is not a question; give its text, or 'prompt' for the prompt's own.")
