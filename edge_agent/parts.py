"""What a configuration names, looked up and checked, and the alarm path built from it without links.

The agent, a replay and a report on alarm burden all build their path here, so that they raise the same alarms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import drivers
from drivers.contract import Decoder, Driver
from edge_agent import links, presets
from edge_agent.alarms import Alarms
from edge_agent.association import Beds
from edge_agent.config import Config, Loaded
from edge_agent.limits import Limits
from edge_agent.pipeline import GATEWAY, Append, Pipeline
from edge_agent.records import AlarmEvent, Signal
from edge_agent.scoring import Scoring
from edge_agent.watch import Watch


class Parts:
    """What a configuration names, looked up and checked but not started: drivers, links, presets of beds."""

    def __init__(self, loaded: Loaded) -> None:
        """Raises: ConfigError for a driver, link, option or preset that does not exist or cannot be used."""
        self.loaded = loaded
        self.known = _known_presets(loaded)
        self.presets = self._bed_presets()
        self._check_model()
        self.drivers: list[Driver] = []
        for index, source in enumerate(loaded.config.source):
            self.drivers.append(_driver(loaded, index, source.driver))
            self._check_source(index)

    def preset(self, bed: str, name: str) -> presets.Preset | None:
        """The preset `name` as `bed` has it, None when there is none."""
        preset = self.known.get(name)
        latching = next((each.latching for each in self.loaded.config.bed if each.id == bed), None)
        return preset if preset is None or latching is None else preset.with_latching(latching)

    def _bed_presets(self) -> dict[str, presets.Preset]:
        chosen = {GATEWAY: self.known["gateway"]}
        for index, bed in enumerate(self.loaded.config.bed):
            preset = self.preset(bed.id, bed.preset)
            if preset is None:
                raise self.loaded.error(
                    ("bed", index, "preset"), f"no preset {bed.preset!r}",
                    f"known presets: {', '.join(sorted(self.known))}",
                )  # fmt: skip
            chosen[bed.id] = preset
        return chosen

    def _check_model(self) -> None:
        model = self.loaded.config.model
        if model is None:
            return
        rows = (row for preset in self.presets.values() for row in preset.conditions if row.verb == "score_above")
        names = sorted({row.vital for row in rows})
        if model.score not in names:
            known = f"they have rows for: {', '.join(names)}" if names else "they have none"
            raise self.loaded.error(
                ("model", "score"),
                f"no bed would be scored: the presets of the beds have no `score_above` row for {model.score!r}",
                f"{known}; the preset adult has sepsis_risk",
            )

    def _check_source(self, index: int) -> None:
        source, driver = self.loaded.config.source[index], self.drivers[index]
        try:
            kind = links.link_kind(source.link)
        except links.LinkError as error:
            raise self.loaded.error(("source", index, "link"), error.reason, error.remedy) from error
        if kind not in driver.links and kind != "file":
            speaks = ", ".join(sorted(driver.links))
            raise self.loaded.error(
                ("source", index, "link"),
                f"driver {driver.name} does not speak over {kind}",
                f"it speaks over: {speaks}",
            )
        unknown = [key for key in source.options if key not in driver.options]
        if unknown:
            known = ", ".join(driver.options) or "none"
            raise self.loaded.error(("source", index, "options", unknown[0]), "unknown option", f"known: {known}")
        try:
            driver.decoder(**source.options)
        except (ValueError, TypeError) as error:
            raise self.loaded.error(("source", index, "options"), str(error)) from error
        if not source.bed and not driver.per_channel:
            raise self.loaded.error(
                ("source", index, "bed"),
                f"driver {driver.name} does not tell beds apart",
                'add bed = "..." to this source',
            )

    def maker(self, index: int) -> Callable[[], Decoder]:
        """What makes a fresh decoder for one source."""
        source, driver = self.loaded.config.source[index], self.drivers[index]
        options = dict(source.options)
        if driver.tells_link:
            options[driver.tells_link] = links.link_kind(source.link)
        return lambda: driver.decoder(**options)


def _driver(loaded: Loaded, index: int, name: str) -> Driver:
    try:
        return drivers.load(name)
    except KeyError:
        known = ", ".join(drivers.names())
        raise loaded.error(("source", index, "driver"), f"no driver {name!r}", f"known drivers: {known}") from None
    except (ImportError, TypeError) as error:
        raise loaded.error(("source", index, "driver"), f"driver {name!r} cannot be loaded: {error}") from error


def _known_presets(loaded: Loaded) -> dict[str, presets.Preset]:
    paths = [loaded.resolve(path) for path in loaded.config.gateway.presets]
    for path in paths:
        if not path.is_file():
            raise loaded.error(("gateway", "presets"), f"{path} is not a file", "correct the path of the preset file")
    return presets.load_presets(paths)


def source_names(config: Config) -> list[str]:
    """A unique name for each source: the one configured, else driver@link."""
    names: list[str] = []
    for source in config.source:
        name = source.name or f"{source.driver}@{source.link}"
        names.append(name if name not in names else f"{name}#{len(names)}")
    return names


def build_pipeline(
    parts: Parts,
    append: Append,
    on_signal: Callable[[Signal], None],
    new_id: Callable[[], str],
    on_latency: Callable[[int], None] = lambda _delay_ns: None,
    *,
    on_alarm: Callable[[str, str, AlarmEvent], None] = lambda _bed, _patient, _event: None,
    on_restart: Callable[[str], None] = lambda _bed: None,
    keep_limits: Callable[[bytes], None] = lambda _settings: None,
) -> Pipeline:
    """The alarm path for these parts, without links: what the agent and a replay have in common."""
    config = parts.loaded.config
    beds = Beds(config.bed)
    watch = Watch(parts.presets)
    holder: list[Pipeline] = []

    def signalled(signal: Signal) -> None:
        on_signal(signal)
        holder[0].signalled()

    def recorded(bed: str, event: AlarmEvent) -> None:
        holder[0].alarm_event(bed, event)

    alarms = Alarms(parts.presets, config.alarms, new_id=new_id, on_event=recorded, on_signal=signalled)
    limits = Limits(parts.presets, parts.preset, watch, alarms, keep_limits)
    scores = Scoring(beds.ids, limits.preset, entry_h=config.scores.entry_h)
    pipeline = Pipeline(
        beds, watch, alarms, append, on_latency, limits=limits, scores=scores, on_alarm=on_alarm, on_restart=on_restart
    )
    holder.append(pipeline)
    return pipeline


def check(loaded: Loaded) -> Mapping[str, str]:
    """What a valid configuration would run, one line a part. Raises: ConfigError for anything that could not run."""
    parts = Parts(loaded)
    lines = {f"bed {bed.id}": f"preset {bed.preset}" for bed in loaded.config.bed}
    for name, driver in zip(source_names(loaded.config), parts.drivers, strict=True):
        lines[f"source {name}"] = f"driver {driver.name}"
    model = loaded.config.model
    if model is not None:
        bundle = "the shipped bundle" if model.bundle is None else str(loaded.resolve(model.bundle))
        lines[f"model {model.score}"] = f"{bundle}{', in shadow' if model.shadow else ''}"
    return lines
