// Who shares keys with whom, and how many shares open a secret: docs/protocol.md, section 8.
// Every client computes it for itself; no message carries it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common.h"

namespace fedslm {

struct Bounds {
  std::int64_t clients = 0, degree = 0, threshold = 0, required = 0, corrupt = 0, quorum = 0;
};

// A share in (0, 1] as it is spelt, with a point or as a whole number; exact.
double require_fraction(const std::string& text);
// The bounds of a cohort; refuses one that cannot be both safe and live.
Bounds bounds_of(std::int64_t clients, const std::string& honest_fraction, const std::string& survivor_fraction);

// A ring of clients, each joined to degree/2 before and after it.
class Graph {
 public:
  // Clients ascending, each once; the order is drawn from 32 bytes.
  Graph(const std::vector<std::int64_t>& clients, std::int64_t degree, std::string_view seed);
  std::vector<std::int64_t> neighbours(std::int64_t client) const;  // ascending
  // Which share of an owner's secrets a neighbour holds, from 1.
  std::int64_t point(std::int64_t owner, std::int64_t holder) const;
  // Refuses members of whom too few are left, or too few neighbours of anybody.
  void require_kept(const Bounds& bounds, const std::vector<std::int64_t>& members) const;

 private:
  std::vector<std::int64_t> order_;
  std::map<std::int64_t, std::int64_t> place_;
  std::int64_t degree_;
};

}  // namespace fedslm
