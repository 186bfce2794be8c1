// As much of HTTP/2 (RFC 9113, RFC 7541) as one gRPC call over one connection needs.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "common.h"

namespace fedslm {

using Fields = std::map<std::string, std::string>;

// Reads a block of header fields of a peer that was told to keep no table of its own; names of the
// static table that no answer of gRPC has are left out.
Fields decode_fields(std::string_view block);
// Writes fields as they are: nothing indexed, nothing compressed.
Bytes encode_fields(const std::vector<std::pair<std::string, std::string>>& fields);

class TlsStream;

// Sends one request and reads its answer to the end.
//   data: called with each piece of the body, never with more than a frame.
// Returns the fields of the answer, those that follow the body included.
Fields exchange(TlsStream& tls, const std::vector<std::pair<std::string, std::string>>& request, const Bytes& body,
                const std::function<void(std::string_view)>& data, double seconds);

}  // namespace fedslm
