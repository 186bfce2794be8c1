"""Bringing a device into a fleet: a token in, a folder with key, certificate and policy out.

The key is made on the device and stays there. Whom the device talks to is checked against the
token's fingerprint; what it allows is written by its owner afterwards, as the policy allows nothing
at first. An attempt that was cut off is finished by giving the same token again.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from client.home import DeviceHome, NodeConfig
from client.policyfile import TEMPLATE
from shared.enrolment import EnrolmentAnswer, EnrolmentToken, require_hex_digest, secret_digest
from shared.errors import (
    CertificateInvalid,
    DataFileNotFound,
    EnrolmentRefused,
    FleetError,
    UsageError,
)
from shared.pki import (
    certificate_request,
    fingerprint,
    new_key,
    openssh_form,
    public_bytes,
    read_certificate,
    renewal_is_due,
    verify_certificate,
)
from shared.privatefiles import (
    create_private,
    make_private_folder,
    read_private,
    remove_file,
    replace_private,
)

PENDING: Final = "enrolling"
_BASES = "base_models = [] "
_SERVER_KEY = '# server_key = "" '

# Redeems a token for the request (PEM) at the server that the token names; whoever makes the call
# checks that the server's certificate is of the authority with the token's fingerprint.
Call = Callable[[EnrolmentToken, bytes], EnrolmentAnswer]
# Returns a new certificate (PEM) for a request of the same key.
Renew = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What came of an enrolment.

    Attributes:
        home: the device's folder.
        policy_kept: whether there was a policy already, which was left as it is.
        ledger_kept: whether the device had spent before; that counts on.
        base_digest: digest of the base model that the server trains, if it names one.
    """

    home: DeviceHome
    policy_kept: bool
    ledger_kept: bool
    base_digest: str | None


def enroll(
    text: str,
    *,
    path: Path,
    data: Path | None,
    base: str,
    step: str | None = None,
    runtime: str = "onnx",
    call: Call,
    now: datetime | None = None,
) -> Enrolment:
    """Enroll this device, or go on with an enrolment that was cut off.

    A folder that left a fleet is enrolled again with a new key; policy and ledger stay.

    Args:
        text: the token as the operator gave it.
        path: the device's folder; made if it does not exist.
        data: the file with the device's records; people need none.
        base: folder of the base model, or "demo".
        step: digest of the exported step that ``base`` holds instead.
        runtime: what runs that step.
        call: redeems the token.
        now: the time; default the clock.

    Raises:
        EnrolmentRefused: if the token is none, is refused, or the answer is not of its server.
        CertificateInvalid: if the certificate is wrong, or this device's clock is.
        DataFileNotFound: if the data is no file.
        InvalidValue: if the server's answer has an address or digest that is none.
        UsageError: if a device that trains has no data, or it lies where things are removed.
        FleetError: if the folder is enrolled already or cannot be written.
        AlreadyRunning: if a node runs from the folder.
        OutOfDisk: if no space is left; give the same token again later.
    """
    token = EnrolmentToken.from_text(text)
    # Only the paths in it are used until it is known who the device is.
    config = NodeConfig(name=token.name, fleet=token.address, control=token.address)
    home = DeviceHome(path=path.absolute(), config=config)
    if data is not None:
        _require_data(home, data)
    make_private_folder(path)
    with home.running():
        if home.node_file.exists() and not home.left:
            msg = f"The folder {path.name!r} is enrolled already."
            hint = "Give another folder with --home, or first: fedslm client leave"
            raise FleetError(msg, hint=hint)
        key = _key_for(home, token)
        answer = call(token, certificate_request(key, token.name))
        _require_ours(answer, token, key, now=now)
        return _write(home, answer, data=data, base=base, step=step, runtime=runtime)


def renewal_due(home: DeviceHome, *, now: datetime | None = None) -> bool:
    """Tell whether less than a third of the certificate's time is left.

    Raises:
        FleetError: if the certificate is missing; CertificateInvalid if it is damaged.
    """
    facts = read_certificate(read_private(home.certificate))
    return renewal_is_due(facts, now=now)


def renew(home: DeviceHome, *, call: Renew, now: datetime | None = None) -> datetime:
    """Replace the device's certificate by a newer one for the same key.

    Args:
        home: the device.
        call: asks the server, over a connection of the current certificate.
        now: the time; default the clock.

    Returns:
        Until when the new certificate is good.

    Raises:
        CertificateInvalid: if the answer is not such a certificate; the old one stays.
        FleetError: if a file cannot be read or written.
    """
    key = read_private(home.key)
    certificate = call(certificate_request(key, home.config.name))
    facts = verify_certificate(certificate, read_private(home.ca), usage="client", now=now)
    wanted = (home.config.name, home.config.role, public_bytes(key))
    if (facts.name, facts.role, facts.public_key) != wanted:
        raise _not_ours()
    replace_private(home.certificate, certificate)
    return facts.not_after


def policy_text(*, base_digest: str | None, ledger_key: str | None) -> str:
    """Return a new device's policy: it allows nothing, and knows the server's base and key.

    Args:
        base_digest: of the base model that the server trains.
        ledger_key: public key that signs the server's ledger.

    Raises:
        InvalidValue: if one is no digest: what a server says must not write the owner's policy.
    """
    require_hex_digest(base_digest=base_digest, ledger_key=ledger_key)
    text = TEMPLATE
    if base_digest is not None:
        text = text.replace(_BASES, f'base_models = ["{base_digest}"] ', 1)
    if ledger_key is not None:
        text = text.replace(_SERVER_KEY, f'server_key = "{ledger_key}" ', 1)
    return text


def _require_data(home: DeviceHome, data: Path) -> None:
    """Require a file of records that ``fedslm client forget`` would leave alone."""
    if not data.is_file():
        msg = f"data={data.name!r} is not a file."
        raise DataFileNotFound(msg, hint="Give the file with this device's records.")
    for folder in (home.state, home.adapters):
        if data.resolve().is_relative_to(folder.resolve()):
            msg = f"data={data.name!r} lies in the device's own folder {folder.name!r}."
            raise UsageError(msg, hint="Keep the records elsewhere; forget empties this folder.")


def _key_for(home: DeviceHome, token: EnrolmentToken) -> bytes:
    """Return the key of this attempt: the same for the same token, a new one for another.

    A server gives a token's place to the first key that comes with it. A device that was cut off
    must therefore come again with that key, and with another one for another token.
    """
    pending, digest = home.path / PENDING, secret_digest(token.secret).hex().encode()
    started = pending.exists() and read_private(pending) == digest
    if not started or home.node_file.exists():
        for file in (home.node_file, home.key, home.certificate, home.ca, pending):
            remove_file(file)
        replace_private(pending, digest)
    if not home.key.exists():
        key = new_key()
        # TLS libraries read the first block, stock Flower nodes the second; it is one key.
        create_private(home.key, key + openssh_form(key))
    return read_private(home.key)


def _require_ours(
    answer: EnrolmentAnswer, token: EnrolmentToken, key: bytes, *, now: datetime | None
) -> None:
    """Require that an answer is of the token's server, and about this device."""
    if not hmac.compare_digest(fingerprint(answer.ca), token.fingerprint):
        msg = f"The server at {token.address} is not the one that the token names."
        hint = "Something else answers in its place. Do not go on; ask the operator."
        raise EnrolmentRefused(msg, hint=hint)
    facts = verify_certificate(answer.certificate, answer.ca, usage="client", now=now)
    found = (facts.name, facts.role, facts.public_key)
    if found != (token.name, answer.role, public_bytes(key)) or answer.name != token.name:
        raise _not_ours()
    require_hex_digest(base_digest=answer.base_digest)
    if (answer.client_index is None) == (answer.role == "node"):
        msg = f"The server gave role={answer.role!r} client_index={answer.client_index!r}, expected"
        msg += " a number for nodes and none for people."
        raise EnrolmentRefused(msg, hint="Ask the operator; the server may be of another version.")


def _write(
    home: DeviceHome,
    answer: EnrolmentAnswer,
    *,
    data: Path | None,
    base: str,
    step: str | None,
    runtime: str,
) -> Enrolment:
    """Write what the server gave; ``node.toml`` last, which makes the device enrolled."""
    if answer.role == "node" and data is None:
        msg = f"name={answer.name!r} is a device that trains, and no data was named."
        raise UsageError(msg, hint="Give the same token again, with --data FILE.")
    config = NodeConfig.of(
        {
            "name": answer.name,
            "role": answer.role,
            "client_index": answer.client_index,
            "fleet": answer.fleet_address,
            "control": answer.control_address,
            "data": None if data is None else str(data.absolute()),
            "base": base,
            "runtime": "torch" if step is None else runtime,
            "step": step,
            "ledger_key": answer.ledger_key,
            "adapter_key": answer.adapter_key,
        }
    )
    replace_private(home.ca, answer.ca)
    replace_private(home.certificate, answer.certificate)
    policy_kept = home.policy.exists()
    if answer.role == "node" and not policy_kept:
        text = policy_text(base_digest=answer.base_digest, ledger_key=answer.ledger_key)
        create_private(home.policy, text.encode())
    ledger_kept = home.state.is_dir() and any(home.state.iterdir())
    # Before the folder is complete: nothing runs from one that is not.
    home.unmark_left()
    enrolled = DeviceHome.create(home.path, config)
    remove_file(home.path / PENDING)
    return Enrolment(
        home=enrolled,
        policy_kept=policy_kept,
        ledger_kept=ledger_kept,
        base_digest=answer.base_digest,
    )


def _not_ours() -> CertificateInvalid:
    """Return the error for a certificate about somebody else."""
    msg = "The server's certificate names another device, role or key than was asked for."
    return CertificateInvalid(msg, hint="Do not go on; ask the operator.")
