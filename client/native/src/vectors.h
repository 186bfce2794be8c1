// Compares this client with the test vectors of the protocol.
#pragma once

#include <string>

namespace fedslm {

// Returns how many comparisons held; raises schema-mismatch at the first that does not.
int check_vectors(const std::string& path);

// Reads every message of the vectors cut off at every byte and with every byte changed; returns how
// many of them were refused. Anything else than a Refusal is a bug.
int check_hostile(const std::string& path);

}  // namespace fedslm
