"""Secure aggregation: a sum modulo 2**32 whose summands nobody sees, the server included.

The protocol is Bonawitz et al.'s against a malicious server (CCS 2017, section 6) on a sparse graph
in the manner of Bell et al. (CCS 2020), with what is listed below in addition. It knows no
transport: each phase is a message (``to_bytes``, ``from_bytes``) of :mod:`.uploads` or
:mod:`.downloads`; clients are a :class:`ClientSession`, the server a :class:`Coordinator`.

===========  ==================================  ==========================================
phase        client                              server
===========  ==================================  ==========================================
1 advertise  two X25519 keys, a commitment to a  collects; announces the whole signed list
             256-bit seed, signed by its         (U1), n of them
             identity
2 share      verifies everything, computes the   collects; deals the ciphertexts, names the
             graph, shares seed and mask key     sharers with their signatures (U2)
             among its neighbours
3 mask       verifies that all sharers signed    adds up; names the survivors (U3)
             the same U1; masks its vector
4 confirm    signs U3, once                      collects; passes the signatures on
5 reveal     verifies a quorum of them; reveals  recovers the secrets, takes the masks off
             one share per neighbour
===========  ==================================  ==========================================

Guarantee
    Whatever the server does, what it and up to ``c = floor((1 - h) n)`` colluding clients of the n
    announced learn about the honest clients' vectors is the sum over *one* set of honest clients,
    the honest part of U3, which has at least ``ceil(s n) - c >= 2`` members; or nothing. (Honest
    clients who were shown different announcements are in different aggregations with no honest
    client in common, and this holds for each of them with its own n.) The vectors should hold noise
    of their own: the sum is exact, and a sum is not private by itself.

Why
    * Everybody in U2 signed U1, which holds this session's fresh keys, so all honest members of U2
      have seen the same U1, and nobody is counted who only took part in an earlier session.
    * Any two of them that reveal have also seen the same U2 and U3: each saw more than
      ``(n + c) / 2`` signatures over them, two such sets share an honest client, and honest clients
      sign once. So no survivor's mask key and no dropped client's seed is ever opened.
    * Honest survivors are connected by masks that nobody else can compute (:mod:`.graph`, rule 2),
      and those cancel only in the sum over all of them. A client that was shown another U2 has
      masks under other keys, which do not cancel at all; at least one of them stays closed, because
      its sharing neighbours and its surviving neighbours have an honest one in common (rule 1).
    * Threshold, degree, graph and quorum are computed by each client from n, h and s. No message
      carries them, so none can weaken them. One list says who survived; who dropped out follows.

Assumptions
    The roster is right, and colluding clients are at most a share ``1 - h`` of *this* cohort (if
    the server picks it: at most ``(1 - h) * min_cohort`` of the whole roster). They are fixed
    before the graph is known. X25519, Ed25519, HKDF-SHA256, ChaCha20 and Poly1305 are what they
    are believed to be, SHA-256 is a random oracle where it draws the graph, and the operating
    system's generator is good. Session bytes are not rolled back (:mod:`.state`).

Failure probability
    With probability at most ``2**-40`` an adversary who does ``2**80`` work on choosing the
    announcement finds one whose sparse graph is bad; complete graphs cannot be. A round with random
    dropouts within ``1 - s`` fails with probability at most ``2**-40``.

Not covered
    A client can send any vector, and any client or the server can make a round fail. Who takes part
    and who drops out is public. If the server asks for two sessions over the same data, both
    sums are released: counting rounds is the ledger's part.
"""

from shared.privacy.secagg.coordinator import Coordinator, SecureSum, Stage, Upload
from shared.privacy.secagg.downloads import Confirmations, KeyList, SharesForYou, SurvivorList
from shared.privacy.secagg.graph import (
    GraphParameters,
    parameters,
    required_survivors,
    tolerated_corrupt,
)
from shared.privacy.secagg.keys import Identity, Roster
from shared.privacy.secagg.session import ClientSession
from shared.privacy.secagg.state import Phase
from shared.privacy.secagg.terms import SecAggTerms
from shared.privacy.secagg.uploads import (
    Advertisement,
    Confirmation,
    MaskedInput,
    Reveals,
    Shares,
)

__all__ = [
    "Advertisement",
    "ClientSession",
    "Confirmation",
    "Confirmations",
    "Coordinator",
    "GraphParameters",
    "Identity",
    "KeyList",
    "MaskedInput",
    "Phase",
    "Reveals",
    "Roster",
    "SecAggTerms",
    "SecureSum",
    "Shares",
    "SharesForYou",
    "Stage",
    "SurvivorList",
    "Upload",
    "parameters",
    "required_survivors",
    "tolerated_corrupt",
]
