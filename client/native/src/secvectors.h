// Compares this client with the test vectors of secure aggregation.
#pragma once

#include <functional>

#include "vectors.h"

namespace fedslm {

void check_secure(Check& check, const Json& all);
// Gives every message that a server sends in a phase, with what reads it, to one that cuts and flips it.
using Attack = std::function<void(const Bytes&, const std::function<void(const Bytes&)>&)>;
void attack_secure(const Attack& attack, const Json& all);

}  // namespace fedslm
