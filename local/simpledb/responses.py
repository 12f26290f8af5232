"""SimpleDB's protocol: it reads a form, calls the store and writes XML.

A subclass of moto's response class, which keeps moto's account and region handling and its two entry points
(the in-process mock and the server). Reading the form and writing the XML are done here rather than by moto's
generic parser and serializer: SimpleDB has an error document of its own, and the generic code takes more time
than the store does.

Regions. The endpoint's host names the region (`sdb.eu-west-1.amazonaws.com`; `sdb.amazonaws.com` is
us-east-1). SimpleDB is signed with Signature Version 2, which names none, so at a bare endpoint
(`http://127.0.0.1:5000`) the region of a client cannot be known. The rule there is the service's own: no
region in the host means us-east-1. So all clients of a bare endpoint share one store, whatever their region.
moto's `get_region_from_url` has the same result.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from hashlib import sha256
from uuid import uuid4
from xml.sax.saxutils import escape

from botocore.exceptions import EndpointConnectionError
from moto.sdb.models import SimpleDBBackend, sdb_backends
from moto.sdb.responses import SimpleDBResponse

from local.simpledb.errors import SimpleDBError, invalid_value, missing
from local.simpledb.select import DEFAULT_PAGE, Query, parse
from local.simpledb.store import (
    MOST_DOMAINS_LISTED,
    MOST_ITEMS_IN_A_BATCH,
    Delete,
    Expected,
    Item,
    Position,
    Put,
    Store,
)

BIGGEST_PAGE = 1_000_000
"""The largest size of the items in a Select response, in bytes (1 MB)."""

_NAMESPACE = "http://sdb.amazonaws.com/doc/2009-04-15/"
_BOX_USAGE = "0.0000219907"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_STORE = "knock_store"


def store_of(backend: SimpleDBBackend) -> Store:
    """Return the store of one account's region. It is kept in moto's backend, so moto's reset empties it."""
    # setdefault on the instance's dict is atomic: two threads' first requests get one store.
    store: Store = backend.__dict__.setdefault(_STORE, Store())
    return store


class Responses(SimpleDBResponse):
    """Answers one request."""

    def __init__(self) -> None:
        super().__init__()
        self.automated_parameter_parsing = False

    def call_action(self) -> tuple[int, dict[str, str], str]:
        """Run the operation that the form names. A refusal becomes the service's error document."""
        self.form: dict[str, str] = {name: values[0] for name, values in self.querystring.items()}
        backends = sdb_backends[self.current_account]
        if self.region not in backends:
            # botocore builds an endpoint for every region; in one without SimpleDB nothing answers there.
            raise EndpointConnectionError(endpoint_url=self.uri)
        self.store = store_of(backends[self.region])
        action = self.form.get("Action", "")
        request_id = str(uuid4())
        try:
            if not action:
                raise SimpleDBError("MissingAction", "No action was supplied with this request.")
            handler = _ACTIONS.get(action)
            if handler is None:
                raise SimpleDBError(
                    "InvalidAction", f"The action {action} is not valid for this web service."
                )
            result = handler(self)
            status = 200
            metadata = f"<RequestId>{request_id}</RequestId><BoxUsage>{_BOX_USAGE}</BoxUsage>"
            body = (
                f'<{action}Response xmlns="{_NAMESPACE}">{result}'
                f"<ResponseMetadata>{metadata}</ResponseMetadata></{action}Response>"
            )
        except SimpleDBError as refusal:
            status = refusal.status
            # A message repeats input, which may contain characters that XML cannot hold.
            message = _text(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", refusal.message))
            body = (
                f"<Response><Errors><Error><Code>{refusal.code}</Code><Message>{message}</Message>"
                f"<BoxUsage>{_BOX_USAGE}</BoxUsage></Error></Errors><RequestID>{request_id}</RequestID></Response>"
            )
        headers = {**self.response_headers, "content-type": "text/xml", "x-amzn-requestid": request_id}
        return status, headers, f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'

    # Reading the form.

    def _required(self, name: str) -> str:
        value = self.form.get(name)
        if value is None:
            raise missing(f"The request must contain the parameter {name}.")
        return value

    def _check_consistent_read(self) -> None:
        _flag(self.form.get("ConsistentRead"), "ConsistentRead", "The ConsistentRead flag")

    def _expected(self) -> Expected | None:
        """Read the condition, written `Expected.Name` or `Expected.1.Name`."""
        conditions: dict[str, list[str]] = {"Name": [], "Value": [], "Exists": []}
        for key, text in self.form.items():
            match = _EXPECTED.fullmatch(key)
            if match:
                conditions[match[1]].append(text)
        name = _only(conditions["Name"], "MultipleExpectedNames", "Expected.Name")
        value = _only(conditions["Value"], "MultipleExpectedValues", "Expected.Value")
        exists = _only(conditions["Exists"], "MultipleExistsConditions", "Exists condition")
        if name is None and value is None and exists is None:
            return None
        if name is None:
            raise missing("The request must contain the parameter Name")
        must_exist = exists is None or _flag(exists, "Expected.Exists", "Expected.Exists")
        if must_exist and value is None:
            raise SimpleDBError(
                "IncompleteExpectedExpression",
                "If Expected.Exists=true or unspecified, then Expected.Value has to be specified",
            )
        if not must_exist and value is not None:
            raise SimpleDBError(
                "ExistsAndExpectedValue",
                "Expected.Exists=false and Expected.Value cannot be specified together",
            )
        return Expected(name, value)

    def _items(self) -> dict[str, list[dict[str, str]]]:
        """Read a batch: item name → its attributes' members."""
        items: dict[str, dict[str, str]] = {}
        for key, value in self.form.items():
            match = _ITEM.fullmatch(key)
            if match:
                items.setdefault(match[1], {})[match[2]] = value
        if not items:
            raise missing("The request must contain the parameter ItemName.")
        if len(items) > MOST_ITEMS_IN_A_BATCH:
            raise SimpleDBError(
                "NumberSubmittedItemsExceeded",
                f"Too many items in a single call. Up to {MOST_ITEMS_IN_A_BATCH} items per call allowed.",
                409,
            )
        attributes_by_item: dict[str, list[dict[str, str]]] = {}
        for members in items.values():
            if "ItemName" not in members:
                raise missing("The request must contain the parameter ItemName.")
            name = members["ItemName"]
            if name in attributes_by_item:
                raise SimpleDBError("DuplicateItemName", f"Item {name} was specified more than once.")
            attributes_by_item[name] = _attributes(members)
        return attributes_by_item

    # The operations.

    def _create_domain(self) -> str:
        self.store.create_domain(self._required("DomainName"))
        return ""

    def _delete_domain(self) -> str:
        self.store.delete_domain(self._required("DomainName"))
        return ""

    def _list_domains(self) -> str:
        most = self.form.get("MaxNumberOfDomains", str(MOST_DOMAINS_LISTED))
        if not most.isdecimal() or not 1 <= int(most) <= MOST_DOMAINS_LISTED:
            raise invalid_value(most, "MaxNumberOfDomains", "MaxNumberOfDomains must be between 1 and 100.")
        token = self.form.get("NextToken")
        after = _read_token(token, "ListDomains")[1] if token is not None else ""
        names = self.store.list_domains(after, int(most) + 1)
        more = _token("ListDomains", ("", names[int(most) - 1])) if len(names) > int(most) else None
        listed = "".join(f"<DomainName>{name}</DomainName>" for name in names[: int(most)])
        return f"<ListDomainsResult>{listed}{_next(more)}</ListDomainsResult>"

    def _domain_metadata(self) -> str:
        counts = self.store.domain_metadata(self._required("DomainName"))
        members = "".join(f"<{name}>{value}</{name}>" for name, value in counts.items())
        return f"<DomainMetadataResult>{members}</DomainMetadataResult>"

    def _get_attributes(self) -> str:
        self._check_consistent_read()
        names = [value for key, value in self.form.items() if _ATTRIBUTE_NAME.fullmatch(key)]
        item = self.store.get(self._required("DomainName"), self._required("ItemName"))
        return f"<GetAttributesResult>{_item_xml(item, names or None)}</GetAttributesResult>"

    def _put_attributes(self) -> str:
        domain, item = self._required("DomainName"), self._required("ItemName")
        self.store.put(domain, {item: _puts(_attributes(self.form))}, self._expected())
        return ""

    def _delete_attributes(self) -> str:
        domain, item = self._required("DomainName"), self._required("ItemName")
        self.store.delete(domain, {item: _deletes(_attributes(self.form))}, self._expected())
        return ""

    def _batch_put_attributes(self) -> str:
        domain = self._required("DomainName")
        self.store.put(domain, {name: _puts(members) for name, members in self._items().items()})
        return ""

    def _batch_delete_attributes(self) -> str:
        domain = self._required("DomainName")
        self.store.delete(domain, {name: _deletes(members) for name, members in self._items().items()})
        return ""

    def _select(self) -> str:
        self._check_consistent_read()
        query = parse(self._required("SelectExpression"))
        token = self.form.get("NextToken")
        after = _read_token(token, query.identity) if token is not None else None
        result = _count(self.store, query, after) if query.counting else _page(self.store, query, after)
        return f"<SelectResult>{result}</SelectResult>"


_ACTIONS: dict[str, Callable[[Responses], str]] = {
    "CreateDomain": Responses._create_domain,
    "DeleteDomain": Responses._delete_domain,
    "ListDomains": Responses._list_domains,
    "DomainMetadata": Responses._domain_metadata,
    "GetAttributes": Responses._get_attributes,
    "PutAttributes": Responses._put_attributes,
    "DeleteAttributes": Responses._delete_attributes,
    "BatchPutAttributes": Responses._batch_put_attributes,
    "BatchDeleteAttributes": Responses._batch_delete_attributes,
    "Select": Responses._select,
}

_EXPECTED = re.compile(r"Expected\.(?:[0-9]+\.)?(Name|Value|Exists)")
_ITEM = re.compile(r"Item\.([0-9]+)\.(.+)", re.DOTALL)
_ATTRIBUTE = re.compile(r"Attribute\.([0-9]+)\.(Name|Value|Replace)")
_ATTRIBUTE_NAME = re.compile(r"AttributeName(?:\.[0-9]+)?")


def _only(values: list[str], code: str, label: str) -> str | None:
    if len(values) > 1:
        raise SimpleDBError(code, f"Only one {label} can be specified")
    return values[0] if values else None


def _flag(value: str | None, parameter: str, label: str) -> bool:
    if value is None:
        return False
    if value.lower() not in ("true", "false"):
        raise invalid_value(value, parameter, f"{label} should be either true or false.")
    return value.lower() == "true"


def _attributes(form: dict[str, str]) -> list[dict[str, str]]:
    """Gather `Attribute.X.Name`, `.Value` and `.Replace` by X."""
    attributes: dict[str, dict[str, str]] = {}
    for key, value in form.items():
        match = _ATTRIBUTE.fullmatch(key)
        if match:
            attributes.setdefault(match[1], {})[match[2]] = value
    for members in attributes.values():
        if "Name" not in members:
            raise missing(f"Attribute.Name missing for Attribute.Value='{members.get('Value', '')}'.")
    return list(attributes.values())


def _puts(attributes: list[dict[str, str]]) -> list[Put]:
    for members in attributes:
        if "Value" not in members:
            raise missing(f"Attribute.Value missing for Attribute.Name='{members['Name']}'.")
    return [
        Put(members["Name"], members["Value"], _flag(members.get("Replace"), "Replace", "The Replace flag"))
        for members in attributes
    ]


def _deletes(attributes: list[dict[str, str]]) -> list[Delete]:
    return [Delete(members["Name"], members.get("Value")) for members in attributes]


# Next tokens. Each holds the position of the next page, and a digest of the position and its statement: a
# token that was invented, changed or sent with another statement is refused. A position rather than a number
# of rows, so a page neither repeats nor skips rows when items are added or deleted between two calls.


def _digest(identity: str, position: Position) -> str:
    return sha256(json.dumps([identity, *position]).encode()).hexdigest()[:24]


def _token(identity: str, position: Position) -> str:
    return base64.b64encode(json.dumps([_digest(identity, position), *position]).encode()).decode()


def _read_token(token: str, identity: str) -> Position:
    try:
        digest, value, name = json.loads(base64.b64decode(token, validate=True))
        if digest == _digest(identity, (value, name)):
            return value, name
    except (binascii.Error, ValueError, TypeError):
        pass  # not a token of ours: refused like a token of another statement
    raise SimpleDBError("InvalidNextToken", "The specified next token is not valid.")


def _next(token: str | None) -> str:
    return f"<NextToken>{token}</NextToken>" if token else ""


# XML.


def _text(text: str) -> str:
    return escape(text, {"\r": "&#13;"})


def _element(tag: str, text: str) -> str:
    """Write an element. Text that XML cannot hold is Base64 and says so.

    Guide: "Working with XML-Restricted Characters".
    """
    if _NOT_XML.search(text):
        encoded = base64.b64encode(text.encode(errors="surrogatepass")).decode()
        return f'<{tag} encoding="base64">{encoded}</{tag}>'
    return f"<{tag}>{_text(text)}</{tag}>"


def _attribute_xml(name: str, values: tuple[str, ...]) -> str:
    opening = f"<Attribute>{_element('Name', name)}"
    return "".join(f"{opening}{_element('Value', value)}</Attribute>" for value in values)


def _item_xml(item: Item, selected: list[str] | None) -> str:
    """Write an item's attributes: all, or those selected."""
    if selected is not None:
        names = [name for name in dict.fromkeys(selected) if name in item.attributes]
        return "".join(_attribute_xml(name, item.attributes[name]) for name in names)
    if item.xml is None:
        item.xml = "".join(_attribute_xml(name, values) for name, values in item.attributes.items())
    return item.xml


def _page(store: Store, query: Query, after: Position | None) -> str:
    most = query.limit or DEFAULT_PAGE
    rows = store.select(query, after, most + 1)
    selected = None if query.everything else list(query.attributes)
    page: list[str] = []
    size = 0
    for position, item in rows[:most]:
        xml = f"<Item>{_element('Name', position[1])}{_item_xml(item, selected)}</Item>"
        size += len(xml) if xml.isascii() else len(xml.encode())
        if page and size > BIGGEST_PAGE:
            break
        page.append(xml)
    more = _token(query.identity, rows[len(page) - 1][0]) if len(page) < len(rows) else None
    return f"{''.join(page)}{_next(more)}"


def _count(store: Store, query: Query, after: Position | None) -> str:
    """Count all matches, or up to the limit. The default and the longest page do not apply to count(*)."""
    rows = store.select(query, after, query.limit and query.limit + 1)
    more = (
        _token(query.identity, rows[query.limit - 1][0]) if query.limit and len(rows) > query.limit else None
    )
    count = query.limit if more else len(rows)
    counted = f"<Attribute><Name>Count</Name><Value>{count}</Value></Attribute>"
    return f"<Item><Name>Domain</Name>{counted}</Item>{_next(more)}"
