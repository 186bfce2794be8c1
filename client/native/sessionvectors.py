"""One secure aggregation as one of its clients sees it, with everything that is drawn given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np

from shared.errors import FedSLMError, SchemaMismatch, SecureAggregationError
from shared.privacy.secagg import keys, shamir
from shared.privacy.secagg.codec import seal, write_integer
from shared.privacy.secagg.cohort import CONFIRM, SHARE, Cohort, survivors_view
from shared.privacy.secagg.downloads import Confirmations, KeyList, SharesForYou, SurvivorList
from shared.privacy.secagg.message import Message
from shared.privacy.secagg.session import ClientSession
from shared.privacy.secagg.state import Phase, Secrets, SessionState
from shared.privacy.secagg.steps import advertise
from shared.privacy.secagg.terms import SecAggTerms
from shared.privacy.secagg.uploads import Shares

M = TypeVar("M", bound=Message)

SMALL_ORDER: Final = bytes(32)
"""The point of order one: what anybody agrees on with it is known to all."""

_ME: Final = 2
_CLIENTS: Final = (0, 2, 5, 7)
_LOST: Final = 7
_DIMENSION: Final = 9


def secret(*words: object) -> bytes:
    """Return 32 bytes that stand for something drawn."""
    return hashlib.sha256("|".join(map(str, ("fedslm-vector", *words))).encode()).digest()


def coefficients(name: str, count: int) -> list[int]:
    """Return field elements that stand for drawn ones; the first is the largest of all."""
    drawn = [int.from_bytes(secret(name, i), "big") for i in range(count)]
    return [shamir.PRIME - 1, *drawn][:count]


def split(shared: bytes, name: str, threshold: int, count: int) -> list[bytes]:
    """Share a secret with the coefficients of a name."""
    given = iter(coefficients(name, threshold - 1))
    shares = shamir.split(
        int.from_bytes(shared, "big"), threshold=threshold, count=count, draw=lambda _: next(given)
    )
    return [shamir.share_to_bytes(share) for share in shares]


class SessionVectors:
    """Four clients of whom one is lost after it shared; seen by one of them."""

    def __init__(self) -> None:
        self.terms = SecAggTerms(
            run_id="spring",
            server_round=3,
            session=secret("session"),
            config_digest=secret("scenario").hex(),
            plan_digest=secret("plan").hex(),
            honest_fraction=0.8,
            survivor_fraction=0.7,
            min_cohort=4,
            dimension=_DIMENSION,
        )
        self.identities = {
            c: keys.Identity.from_private_bytes(secret("identity", c)) for c in (*_CLIENTS, 9)
        }
        self.roster = keys.Roster({c: self.identities[c].public_key for c in _CLIENTS})
        self.states = {c: self._begun(c) for c in _CLIENTS}
        self.adverts = {c: advertise(self.states[c], self.identities[c]) for c in _CLIENTS}
        self.key_list = self._key_list(self.adverts)
        self.cohort = Cohort.announced(self.terms, self.key_list)
        self.shares = {c: self._shares(c) for c in _CLIENTS}
        self.vector = np.arange(_DIMENSION, dtype=np.uint32) * np.uint32(0x1F3D5B79)

    def vectors(self) -> dict[str, Any]:
        """Write one client's messages, and what it must refuse in each phase."""
        mine = self.states[_ME].own_secrets()
        count = self.cohort.bounds.threshold - 1
        shared = replace(self.states[_ME], phase=Phase.SHARED, cohort=self.cohort)
        session = ClientSession(shared, self.identities[_ME], self.roster)
        for_me = self._for_me()
        masked = session.mask(for_me, self.vector)
        survivors = SurvivorList(
            context=self.cohort.sharers_view(_CLIENTS),
            survivors=tuple(c for c in _CLIENTS if c != _LOST),
        )
        confirmed = session.confirm(survivors)
        confirmations = self._confirmations(survivors.survivors)
        revealed = session.reveal(confirmations)
        return {
            "terms": {
                "run_id": self.terms.run_id,
                "server_round": self.terms.server_round,
                "session": self.terms.session.hex(),
                "config_digest": self.terms.config_digest,
                "plan_digest": self.terms.plan_digest,
                "honest_fraction": repr(self.terms.honest_fraction),
                "survivor_fraction": repr(self.terms.survivor_fraction),
                "min_cohort": self.terms.min_cohort,
                "dimension": self.terms.dimension,
                "bytes": self.terms.to_bytes().hex(),
                "digest": self.terms.digest().hex(),
            },
            "client": _ME,
            "identity": self.identities[_ME].private_bytes().hex(),
            "roster": {str(c): self.roster.public_key(c).hex() for c in self.roster},
            "share_key": mine.share_key.hex(),
            "mask_key": mine.mask_key.hex(),
            "seed": mine.seed.hex(),
            "drawn": [
                shamir.share_to_bytes(c).hex()
                for name in ("seed", "key")
                for c in coefficients(f"{name}-{_ME}", count)
            ],
            "vector": self.vector.astype("<u4").tobytes().hex(),
            "phases": [
                {"phase": "advertise", "answer": self.adverts[_ME].to_bytes().hex()},
                _phase("share", self.key_list, self.shares[_ME]),
                _phase("mask", for_me, masked),
                _phase("confirm", survivors, confirmed),
                _phase("reveal", confirmations, revealed),
            ],
            "refused": [
                *self._wrong_lists(),
                *self._wrong_shares(for_me),
                *self._wrong_survivors(survivors),
                *self._wrong_confirmations(confirmations, survivors.survivors),
            ],
        }

    def _begun(self, client: int) -> SessionState:
        """Return a client's state with given secrets."""
        return SessionState(
            phase=Phase.ADVERTISED,
            terms=self.terms,
            client=client,
            roster_digest=self.roster.digest(),
            secrets=Secrets(
                share_key=secret("share key", client),
                mask_key=secret("mask key", client),
                seed=secret("seed", client),
            ),
        )

    def _key_list(self, adverts: Mapping[int, Any]) -> KeyList:
        """Announce some clients."""
        entries = tuple(adverts[c] for c in sorted(adverts))
        return KeyList(context=self.terms.digest(), advertisements=entries)

    def _shares(self, client: int) -> Shares:
        """Share a client's secrets by given coefficients."""
        own, cohort = self.states[client].own_secrets(), self.cohort
        bounds = cohort.bounds
        seeds = split(own.seed, f"seed-{client}", bounds.threshold, bounds.degree)
        halves = split(own.mask_key, f"key-{client}", bounds.threshold, bounds.degree)
        rows = []
        for peer in cohort.graph.neighbours(client):
            at = cohort.graph.point(client, peer) - 1
            rows.append((peer, self._sealed(client, peer, seeds[at] + halves[at])))
        signature = self.identities[client].sign(SHARE, cohort.view, client)
        return Shares(
            context=cohort.view, client=client, ciphertexts=tuple(rows), signature=signature
        )

    def _sealed(self, sender: int, receiver: int, plain: bytes) -> bytes:
        """Encrypt what one client shares with another."""
        own = self.states[sender].own_secrets().share_key
        agreed = keys.agree(own, self.cohort.entries[receiver].share_key)
        return keys.encrypt(agreed, self.cohort.view, sender, receiver, plain)

    def _for_me(self) -> SharesForYou:
        """Return what the server deals to the client."""
        return SharesForYou(
            context=self.cohort.view,
            receiver=_ME,
            sharers=tuple((c, self.shares[c].signature) for c in _CLIENTS),
            ciphertexts=tuple(
                (c, dict(self.shares[c].ciphertexts)[_ME]) for c in _CLIENTS if c != _ME
            ),
        )

    def _confirmations(self, survivors: tuple[int, ...]) -> Confirmations:
        """Let all survivors confirm."""
        view = survivors_view(self.cohort.sharers_view(_CLIENTS), survivors)
        return Confirmations(
            context=view,
            signatures=tuple((c, self.identities[c].sign(CONFIRM, view, c)) for c in survivors),
        )

    def _wrong_lists(self) -> list[dict[str, str]]:
        """Write announcements that the client must refuse."""
        own = self.adverts[_ME]

        def changed(client: int, **values: bytes) -> KeyList:
            entry = replace(self.adverts[client], **values)  # type: ignore[arg-type]
            return self._key_list({**self.adverts, client: entry})

        elsewhere = replace(self.terms, session=secret("another session"))
        strange = replace(self.adverts[_LOST], client=9)
        other_terms = KeyList(
            context=elsewhere.digest(),
            advertisements=tuple(
                advertise(replace(self.states[c], terms=elsewhere), self.identities[c])
                for c in _CLIENTS
            ),
        )
        without = {c: entry for c, entry in self.adverts.items() if c != _LOST}
        absent = {c: entry for c, entry in self.adverts.items() if c != _ME}
        cases = {
            "another session": other_terms,
            "too few": self._key_list(without),
            "without this client": self._key_list({**absent, 9: strange}),
            "own key changed": changed(_ME, share_key=self.adverts[5].share_key[::-1]),
            "own commitment changed": changed(_ME, commitment=own.commitment[::-1]),
            "a key of somebody twice": changed(5, mask_key=own.mask_key),
            "a client outside the roster": self._key_list({**without, 9: strange}),
            "a key that was not signed": changed(5, share_key=keys.public_key(secret("evil"))),
            "a signature of another": changed(5, signature=self.adverts[0].signature),
        }
        unsigned = replace(self.adverts[5], share_key=SMALL_ORDER)
        content = unsigned.signed_content()
        signature = self.identities[5].sign("advertise", self.terms.digest(), 5, content)
        cases["a point of small order"] = changed(5, share_key=SMALL_ORDER, signature=signature)
        tried = ClientSession.share
        found = [self._refused("share", why, message, tried) for why, message in cases.items()]
        return [*found, self._unordered()]

    def _unordered(self) -> dict[str, str]:
        """Write an announcement whose clients are not in order; ours cannot build one."""
        entries = [self.adverts[c] for c in (0, 5, _ME, 7)]
        body = b"".join(entry._body() for entry in entries)
        raw = seal(KeyList.KIND, self.terms.digest() + write_integer(len(entries)) + body)
        return {
            "phase": "share",
            "why": "out of order",
            "message": raw.hex(),
            "code": SchemaMismatch.code,
        }

    def _wrong_shares(self, honest: SharesForYou) -> list[dict[str, str]]:
        """Write deals of shares that the client must refuse."""
        rows, sharers = dict(honest.ciphertexts), dict(honest.sharers)
        flipped = bytes([rows[5][0] ^ 1]) + rows[5][1:]
        large = shamir.PRIME.to_bytes(shamir.SHARE_BYTES, "big")

        def changed(**values: object) -> SharesForYou:
            return replace(honest, **values)  # type: ignore[arg-type]

        def table(values: Mapping[int, bytes]) -> tuple[tuple[int, bytes], ...]:
            return tuple(sorted(values.items()))

        few = {c: s for c, s in sharers.items() if c in {0, _ME}}
        without = {c: s for c, s in sharers.items() if c != _ME}
        cases = {
            "another announcement": changed(context=secret("elsewhere")),
            "for another": changed(receiver=5),
            "without this client": changed(sharers=table(without)),
            "too few shared": changed(sharers=table(few), ciphertexts=table({0: rows[0]})),
            "a stranger shared": changed(sharers=table({**sharers, 9: sharers[0]})),
            "a signature of another": changed(sharers=table({**sharers, 5: sharers[0]})),
            "an altered share": changed(ciphertexts=table({**rows, 5: flipped})),
            "a share of another": changed(ciphertexts=table({**rows, 5: rows[0]})),
            "a missing share": changed(
                ciphertexts=table({c: row for c, row in rows.items() if c != 5})
            ),
            "a share too many": changed(ciphertexts=table({**rows, 9: rows[0]})),
            "no field element": changed(
                ciphertexts=table({**rows, 5: self._sealed(5, _ME, large + large)})
            ),
        }
        return [
            self._refused("mask", why, message, lambda s, m: s.mask(m, self.vector))
            for why, message in cases.items()
        ]

    def _wrong_survivors(self, honest: SurvivorList) -> list[dict[str, str]]:
        """Write lists of survivors that the client must refuse."""
        cases = {
            "another deal": replace(honest, context=secret("elsewhere")),
            "without this client": replace(honest, survivors=(0, 5, 7)),
            "a stranger survived": replace(honest, survivors=(0, 2, 5, 9)),
            "too few survived": replace(honest, survivors=(0, 2)),
        }
        return [
            self._refused("confirm", why, message, ClientSession.confirm)
            for why, message in cases.items()
        ]

    def _wrong_confirmations(
        self, honest: Confirmations, survivors: tuple[int, ...]
    ) -> list[dict[str, str]]:
        """Write confirmations that the client must refuse."""
        rows = dict(honest.signatures)
        others = self._confirmations(tuple(_CLIENTS))
        first = survivors[0]
        strange = self.identities[_LOST].sign(CONFIRM, honest.context, _LOST)

        def table(values: Mapping[int, bytes]) -> tuple[tuple[int, bytes], ...]:
            return tuple(sorted(values.items()))

        cases = {
            "other survivors": others,
            "too few": replace(honest, signatures=honest.signatures[:2]),
            "a signature of another": replace(honest, signatures=table({**rows, 5: rows[first]})),
            "one who did not survive": replace(honest, signatures=table({**rows, _LOST: strange})),
            "a signature over other survivors": replace(
                honest, signatures=table({**rows, 5: dict(others.signatures)[5]})
            ),
        }
        return [
            self._refused("reveal", why, message, ClientSession.reveal)
            for why, message in cases.items()
        ]

    def _refused(
        self, phase: str, why: str, message: M, tried: Callable[[ClientSession, M], object]
    ) -> dict[str, str]:
        """Ask our own client, and write what it says."""
        state = self.states[_ME]
        survivors = tuple(c for c in _CLIENTS if c != _LOST)
        if phase != "share":
            state = replace(state, phase=Phase.SHARED, cohort=self.cohort)
        session = ClientSession(state, self.identities[_ME], self.roster)
        if phase in {"confirm", "reveal"}:
            session.mask(self._for_me(), self.vector)
        if phase == "reveal":
            view = self.cohort.sharers_view(_CLIENTS)
            session.confirm(SurvivorList(context=view, survivors=survivors))
        try:
            tried(session, message)
        except FedSLMError as error:
            raw = message.to_bytes().hex()
            return {"phase": phase, "why": why, "message": raw, "code": error.code}
        msg = f"{phase}: {why} was not refused."
        raise SecureAggregationError(msg)


def _phase(name: str, message: Message, answer: Message) -> dict[str, str]:
    """Write what a phase asks and what is answered."""
    return {"phase": name, "message": message.to_bytes().hex(), "answer": answer.to_bytes().hex()}
