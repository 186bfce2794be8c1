// What Linux says about this device right now: power, heat, network, load, memory. Whatever is not
// there, or not in a form that is known, is unknown, and never taken for good.
#pragma once

#include <optional>
#include <set>
#include <string>

namespace fedslm {

// In seconds of one core since the machine started.
struct Usage {
  double busy = 0, total = 0, own = 0;
};

class Machine {
 public:
  // Another root and process are for tests.
  explicit Machine(std::string root = "", std::string process = "self")
      : proc_(root + "/proc/"), sys_(root + "/sys/"), process_(std::move(process)) {}

  std::optional<bool> mains_power() const;   // fed from outside; a battery that empties means no
  std::optional<double> battery() const;     // percent, of the emptiest
  std::optional<double> temperature() const; // degrees Celsius, of the hottest zone
  std::optional<std::set<std::string>> networks() const;  // wired, wifi, mobile: of the routes that are taken
  std::optional<double> load() const;        // average of the last minute, over all cores
  std::optional<Usage> usage() const;
  std::optional<double> free_memory() const; // bytes: what the machine and this process's groups leave

 private:
  std::set<std::string> outward() const;
  std::string kind(const std::string& interface, int depth) const;  // "" where it is not known
  std::string proc_, sys_, process_;
};

}  // namespace fedslm
