// Holds this client to the test vectors of docs/protocol.md, and to damage done to them.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "json.h"

namespace fedslm {

class Check {
 public:
  void same(const std::string& found, const std::string& expected, const std::string& what) {
    if (found != expected) mismatch("vectors: " + what + " differs");
    ++count;
  }
  void holds(bool found, const std::string& what) {
    if (!found) mismatch("vectors: " + what + " does not hold");
    ++count;
  }
  void near(double found, double expected, double tolerance, const std::string& what) {
    holds(std::fabs(found - expected) <= tolerance * std::max(1.0, std::fabs(expected)), what);
  }
  int count = 0;
};

// Tokens, messages and header fields of the control service.
void check_control(Check& check, const Json& all);

// Returns how many comparisons held; raises schema-mismatch at the first that does not.
int check_vectors(const std::string& path);

// Reads every message of the vectors cut off at every byte and with every byte changed; returns how
// many of them were refused. Anything else than a Refusal is a bug.
int check_hostile(const std::string& path);

}  // namespace fedslm
