"""Merges the metrics of several replicas into one page, with a label for the replica. Called by `scale.replica`."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"


def merge(pages: Mapping[str, str]) -> bytes:
    """One page in Prometheus' format from a page for each replica. The samples get a label with the replica's name."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(pages))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, pages: Mapping[str, str]):
        self._pages = pages

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        families = dict[str, Metric]()
        for replica, page in self._pages.items():
            for found in text_string_to_metric_families(page):
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.samples.append(sample._replace(labels={LABEL: replica, **sample.labels}))
        return families.values()
