// When a device may work: what its owner asks for, compared with what is the case now. A condition
// that is asked for and cannot be judged is not met.
#pragma once

#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "lines.h"
#include "machine.h"

namespace fedslm {

// Keys of client.conf; one that is missing asks for nothing (docs/device-policy.md).
struct Asked {
  static Asked take(Lines& lines);
  std::vector<std::pair<int, int>> hours;  // minutes of the day: the start belongs to it, the end does not
  std::vector<std::string> networks;
  bool mains_power = false, pause_when_busy = false;
  std::optional<double> max_load, min_free_memory_mb, min_battery_percent, max_temperature_celsius;
};

struct Condition {
  std::string name;
  bool met;
  std::string found;
};

class Conditions {
 public:
  // The clock never goes back, in seconds.
  Conditions(const Asked& asked, Machine machine, std::function<double()> clock);
  std::vector<Condition> report();
  // Why the device may not work now; "" when it may. Looks at most once a second.
  std::string reasons();
  void look_at(Machine machine) { machine_ = std::move(machine); }  // for tests

 private:
  void look();
  const Asked asked_;
  Machine machine_;
  const std::function<double()> clock_;
  // How much programs other than this one use: of the load average, and since the look before.
  std::optional<Usage> last_;
  double last_at_ = 0, own_load_ = 0, busy_at_ = -std::numeric_limits<double>::infinity();
  std::optional<double> load_, share_;
  bool calm_ = true;
  double asked_at_ = -std::numeric_limits<double>::infinity();
  std::string reasons_;
};

}  // namespace fedslm
