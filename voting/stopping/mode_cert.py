"""Stop once it is certified which answer is the mode (voting.md section 12.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samplers.contract import Param
from voting.stopping.base import BaseEvidence, BaseStoppingRule
from voting.stopping.bets import Bets, CountBets, WeightedBets
from voting.stopping.certificate import Certificate, as_float
from voting.stopping.contract import STOPPING_RULES, Label
from voting.stopping.lead import Lead


@STOPPING_RULES.register
class ModeCertificate(BaseStoppingRule):
    """Fires with the certificate; `value` is its e-value. It is about the mode of what these sampler settings answer,
    and void for samples that depend on each other and for a relation of answers that is not transitive.

    `weighted` counts a sample as q. `report_only` never fires and adds the e-value of whoever leads at the moment,
    which proves nothing, for the target is chosen with the samples that it is tested on.
    """

    name = "mode_cert"
    params = (
        Param("alpha", float, 0.05, low=0, high=0.5, low_open=True),
        Param("warmup", int, 3, low=1, high=512),
        Param("max_targets", int, 1, low=1, high=512),
        Param("weighted", bool, False),
        Param("report_only", bool, False),
    )
    needs_iid = True

    def needs(self, values: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"logprobs"} if values["weighted"] else ())

    def start(self, values: Mapping[str, Any]) -> CertificateEvidence:
        return CertificateEvidence(values)


class CertificateEvidence(BaseEvidence):
    """The certificate, and with `report_only` what it would be without a split."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._weighted = values["weighted"]
        self._report_only = values["report_only"]
        self._certificate = Certificate(values["alpha"], values["warmup"], values["max_targets"], values["weighted"])
        self._lead = Lead()
        self._bets: Bets = WeightedBets() if values["weighted"] else CountBets()  # of all samples, on whoever leads

    def add(self, label: Label, weight: float) -> None:
        weight = weight if self._weighted else 1
        self._certificate.add(label, weight)
        if self._report_only and label is not None:
            self._lead.add(label, weight)
            self._bets.add(label, weight)
        if self._certificate.target is not None:
            self.value = as_float(self._certificate.e)
        self.enough = self._certificate.certified and not self._report_only

    def details(self) -> Mapping[str, Any]:
        cert = self._certificate.report()
        if not self._report_only:
            return {"cert": cert}
        return {
            "cert": cert,
            "heuristic": {"target": self._lead.leader, "e": as_float(self._bets.e(self._lead.leader))},
        }
