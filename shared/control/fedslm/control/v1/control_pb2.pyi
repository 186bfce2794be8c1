from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrollRequest(_message.Message):
    __slots__ = ("token", "csr")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    token: str
    csr: bytes
    def __init__(self, token: _Optional[str] = ..., csr: _Optional[bytes] = ...) -> None: ...

class EnrollResponse(_message.Message):
    __slots__ = ("certificate", "ca", "name", "role", "client_index", "control_address", "fleet_address", "adapter_key", "ledger_key", "base_digest")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    CONTROL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    FLEET_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_KEY_FIELD_NUMBER: _ClassVar[int]
    LEDGER_KEY_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    ca: bytes
    name: str
    role: str
    client_index: int
    control_address: str
    fleet_address: str
    adapter_key: str
    ledger_key: str
    base_digest: str
    def __init__(self, certificate: _Optional[bytes] = ..., ca: _Optional[bytes] = ..., name: _Optional[str] = ..., role: _Optional[str] = ..., client_index: _Optional[int] = ..., control_address: _Optional[str] = ..., fleet_address: _Optional[str] = ..., adapter_key: _Optional[str] = ..., ledger_key: _Optional[str] = ..., base_digest: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr",)
    CSR_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    def __init__(self, csr: _Optional[bytes] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("certificate", "ca")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    ca: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., ca: _Optional[bytes] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LeaveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Signature(_message.Message):
    __slots__ = ("domain", "sha256", "public_key", "signature")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    domain: str
    sha256: str
    public_key: str
    signature: str
    def __init__(self, domain: _Optional[str] = ..., sha256: _Optional[str] = ..., public_key: _Optional[str] = ..., signature: _Optional[str] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("digest", "name", "created_at", "state", "current")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    digest: str
    name: str
    created_at: str
    state: str
    current: bool
    def __init__(self, digest: _Optional[str] = ..., name: _Optional[str] = ..., created_at: _Optional[str] = ..., state: _Optional[str] = ..., current: _Optional[bool] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ("page_size", "after")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    after: str
    def __init__(self, page_size: _Optional[int] = ..., after: _Optional[str] = ...) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters", "more")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    more: bool
    def __init__(self, adapters: _Optional[_Iterable[_Union[Adapter, _Mapping[str, object]]]] = ..., more: _Optional[bool] = ...) -> None: ...

class GetManifestRequest(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class GetManifestResponse(_message.Message):
    __slots__ = ("digest", "manifest", "signature", "state", "size")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    digest: str
    manifest: bytes
    signature: Signature
    state: str
    size: int
    def __init__(self, digest: _Optional[str] = ..., manifest: _Optional[bytes] = ..., signature: _Optional[_Union[Signature, _Mapping[str, object]]] = ..., state: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class GetOrderRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetOrderResponse(_message.Message):
    __slots__ = ("order", "signature")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    order: bytes
    signature: Signature
    def __init__(self, order: _Optional[bytes] = ..., signature: _Optional[_Union[Signature, _Mapping[str, object]]] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("digest", "offset")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    digest: str
    offset: int
    def __init__(self, digest: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class DownloadResponse(_message.Message):
    __slots__ = ("offset", "data", "total")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    total: int
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., total: _Optional[int] = ...) -> None: ...

class Statement(_message.Message):
    __slots__ = ("subject", "scope", "epsilon", "delta", "unit", "neighboring_relation", "releases", "epsilon_rdp", "accountant", "cap", "remaining")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    NEIGHBORING_RELATION_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    EPSILON_RDP_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTANT_FIELD_NUMBER: _ClassVar[int]
    CAP_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    subject: str
    scope: str
    epsilon: float
    delta: float
    unit: str
    neighboring_relation: str
    releases: int
    epsilon_rdp: float
    accountant: str
    cap: float
    remaining: float
    def __init__(self, subject: _Optional[str] = ..., scope: _Optional[str] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., unit: _Optional[str] = ..., neighboring_relation: _Optional[str] = ..., releases: _Optional[int] = ..., epsilon_rdp: _Optional[float] = ..., accountant: _Optional[str] = ..., cap: _Optional[float] = ..., remaining: _Optional[float] = ...) -> None: ...

class LedgerHead(_message.Message):
    __slots__ = ("seq", "hash", "public_key", "signature")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    seq: int
    hash: str
    public_key: str
    signature: str
    def __init__(self, seq: _Optional[int] = ..., hash: _Optional[str] = ..., public_key: _Optional[str] = ..., signature: _Optional[str] = ...) -> None: ...

class Charge(_message.Message):
    __slots__ = ("run", "server_round", "state")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SERVER_ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    run: str
    server_round: int
    state: str
    def __init__(self, run: _Optional[str] = ..., server_round: _Optional[int] = ..., state: _Optional[str] = ...) -> None: ...

class GetOwnRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetOwnResponse(_message.Message):
    __slots__ = ("name", "client_index", "statements", "head", "charges", "more_charges")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLIENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    STATEMENTS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CHARGES_FIELD_NUMBER: _ClassVar[int]
    MORE_CHARGES_FIELD_NUMBER: _ClassVar[int]
    name: str
    client_index: int
    statements: _containers.RepeatedCompositeFieldContainer[Statement]
    head: LedgerHead
    charges: _containers.RepeatedCompositeFieldContainer[Charge]
    more_charges: bool
    def __init__(self, name: _Optional[str] = ..., client_index: _Optional[int] = ..., statements: _Optional[_Iterable[_Union[Statement, _Mapping[str, object]]]] = ..., head: _Optional[_Union[LedgerHead, _Mapping[str, object]]] = ..., charges: _Optional[_Iterable[_Union[Charge, _Mapping[str, object]]]] = ..., more_charges: _Optional[bool] = ...) -> None: ...

class GetNodeRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetNodeResponse(_message.Message):
    __slots__ = ("name", "client_index", "statements", "head", "charges", "more_charges")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLIENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    STATEMENTS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CHARGES_FIELD_NUMBER: _ClassVar[int]
    MORE_CHARGES_FIELD_NUMBER: _ClassVar[int]
    name: str
    client_index: int
    statements: _containers.RepeatedCompositeFieldContainer[Statement]
    head: LedgerHead
    charges: _containers.RepeatedCompositeFieldContainer[Charge]
    more_charges: bool
    def __init__(self, name: _Optional[str] = ..., client_index: _Optional[int] = ..., statements: _Optional[_Iterable[_Union[Statement, _Mapping[str, object]]]] = ..., head: _Optional[_Union[LedgerHead, _Mapping[str, object]]] = ..., charges: _Optional[_Iterable[_Union[Charge, _Mapping[str, object]]]] = ..., more_charges: _Optional[bool] = ...) -> None: ...

class ListBudgetsRequest(_message.Message):
    __slots__ = ("page_size", "page")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page: int
    def __init__(self, page_size: _Optional[int] = ..., page: _Optional[int] = ...) -> None: ...

class ListBudgetsResponse(_message.Message):
    __slots__ = ("statements", "more", "head")
    STATEMENTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    statements: _containers.RepeatedCompositeFieldContainer[Statement]
    more: bool
    head: LedgerHead
    def __init__(self, statements: _Optional[_Iterable[_Union[Statement, _Mapping[str, object]]]] = ..., more: _Optional[bool] = ..., head: _Optional[_Union[LedgerHead, _Mapping[str, object]]] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("name", "state", "mode", "rounds_done", "rounds_planned", "epsilon", "delta", "unit", "neighboring_relation", "releases", "cap", "audit_verdict", "config_digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_DONE_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_PLANNED_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    NEIGHBORING_RELATION_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    CAP_FIELD_NUMBER: _ClassVar[int]
    AUDIT_VERDICT_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    mode: str
    rounds_done: int
    rounds_planned: int
    epsilon: float
    delta: float
    unit: str
    neighboring_relation: str
    releases: int
    cap: float
    audit_verdict: str
    config_digest: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., mode: _Optional[str] = ..., rounds_done: _Optional[int] = ..., rounds_planned: _Optional[int] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., unit: _Optional[str] = ..., neighboring_relation: _Optional[str] = ..., releases: _Optional[int] = ..., cap: _Optional[float] = ..., audit_verdict: _Optional[str] = ..., config_digest: _Optional[str] = ...) -> None: ...

class Round(_message.Message):
    __slots__ = ("round", "cohort", "answered", "seconds", "bytes_up_per_client", "bytes_down_per_client", "epsilon", "delta", "releases")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_PER_CLIENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_PER_CLIENT_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    round: int
    cohort: int
    answered: int
    seconds: float
    bytes_up_per_client: int
    bytes_down_per_client: int
    epsilon: float
    delta: float
    releases: int
    def __init__(self, round: _Optional[int] = ..., cohort: _Optional[int] = ..., answered: _Optional[int] = ..., seconds: _Optional[float] = ..., bytes_up_per_client: _Optional[int] = ..., bytes_down_per_client: _Optional[int] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., releases: _Optional[int] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("page_size", "after")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    after: str
    def __init__(self, page_size: _Optional[int] = ..., after: _Optional[str] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs", "more")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    more: bool
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping[str, object]]]] = ..., more: _Optional[bool] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("name", "first_round", "page_size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROUND_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    first_round: int
    page_size: int
    def __init__(self, name: _Optional[str] = ..., first_round: _Optional[int] = ..., page_size: _Optional[int] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run", "rounds", "more")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    run: Run
    rounds: _containers.RepeatedCompositeFieldContainer[Round]
    more: bool
    def __init__(self, run: _Optional[_Union[Run, _Mapping[str, object]]] = ..., rounds: _Optional[_Iterable[_Union[Round, _Mapping[str, object]]]] = ..., more: _Optional[bool] = ...) -> None: ...

class GetAuditRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetAuditResponse(_message.Message):
    __slots__ = ("report", "signature")
    REPORT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    report: bytes
    signature: bytes
    def __init__(self, report: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("name", "role", "client_index", "enrolled_at", "revoked_at", "revoked_reason", "last_seen", "flags")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    ENROLLED_AT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_AT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_REASON_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    client_index: int
    enrolled_at: int
    revoked_at: int
    revoked_reason: str
    last_seen: int
    flags: _containers.RepeatedCompositeFieldContainer[Flag]
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., client_index: _Optional[int] = ..., enrolled_at: _Optional[int] = ..., revoked_at: _Optional[int] = ..., revoked_reason: _Optional[str] = ..., last_seen: _Optional[int] = ..., flags: _Optional[_Iterable[_Union[Flag, _Mapping[str, object]]]] = ...) -> None: ...

class Flag(_message.Message):
    __slots__ = ("code", "count", "last_at")
    CODE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    LAST_AT_FIELD_NUMBER: _ClassVar[int]
    code: str
    count: int
    last_at: int
    def __init__(self, code: _Optional[str] = ..., count: _Optional[int] = ..., last_at: _Optional[int] = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ("page_size", "after")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    after: str
    def __init__(self, page_size: _Optional[int] = ..., after: _Optional[str] = ...) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes", "more")
    NODES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    more: bool
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping[str, object]]]] = ..., more: _Optional[bool] = ...) -> None: ...

class RevokeRequest(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RevokeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NewTokenRequest(_message.Message):
    __slots__ = ("name", "role", "valid_seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    VALID_SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    valid_seconds: int
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., valid_seconds: _Optional[int] = ...) -> None: ...

class NewTokenResponse(_message.Message):
    __slots__ = ("token", "expires_at")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    token: str
    expires_at: int
    def __init__(self, token: _Optional[str] = ..., expires_at: _Optional[int] = ...) -> None: ...
