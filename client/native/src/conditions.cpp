#include "conditions.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>

namespace fedslm {
namespace {

constexpr double kBusy = 0.5, kCalmSeconds = 60, kMinute = 60, kLeastInterval = 2, kMib = 1048576;

[[noreturn]] void wrong(const std::string& why) { throw Refusal("config", why); }

int minutes(const std::string& text, bool end) {
  const bool shaped = text.size() == 5 && text[2] == ':' && text.find_first_not_of("0123456789:") == std::string::npos &&
                      std::count(text.begin(), text.end(), ':') == 1;
  const int hour = shaped ? std::atoi(text.substr(0, 2).c_str()) : 99, minute = shaped ? std::atoi(text.substr(3).c_str()) : 99;
  if (minute > 59 || hour > 24 || (hour == 24 && (!end || minute != 0))) wrong("hours has a part that is not HH:MM-HH:MM");
  return hour * 60 + minute;
}

int minute_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  localtime_r(&now, &parts);
  return parts.tm_hour * 60 + parts.tm_min;
}

bool inside(const std::pair<int, int>& window, int minute) {
  const auto [start, end] = window;
  return start < end ? start <= minute && minute < end : minute >= start || minute < end;
}

std::string said(const std::optional<double>& value, const char* form, double scale = 1) {
  if (!value) return "not known";
  char text[64];
  std::snprintf(text, sizeof text, form, *value * scale);
  return text;
}

}  // namespace

Asked Asked::take(Lines& lines) {
  Asked found;
  if (lines.has("hours"))
    for (const std::string& window : lines.list("hours")) {
      if (window.size() != 11 || window[5] != '-') wrong("hours has a part that is not HH:MM-HH:MM");
      found.hours.emplace_back(minutes(window.substr(0, 5), false), minutes(window.substr(6), true));
      if (found.hours.back().first == found.hours.back().second) wrong("hours has a window of no length");
    }
  if (lines.has("networks")) {
    found.networks = lines.list("networks");
    for (const std::string& kind : found.networks)
      if (kind != "wired" && kind != "wifi" && kind != "mobile") wrong("networks names another kind than wired, wifi, mobile");
  }
  if (lines.has("mains_power")) found.mains_power = lines.yes("mains_power");
  if (lines.has("pause_when_busy")) found.pause_when_busy = lines.yes("pause_when_busy");
  if (lines.has("max_load")) found.max_load = lines.real("max_load", 1e-9, 1e6);
  if (lines.has("max_temperature_celsius")) found.max_temperature_celsius = lines.real("max_temperature_celsius", 1e-9, 1e6);
  if (lines.has("min_free_memory_mb")) found.min_free_memory_mb = static_cast<double>(lines.whole("min_free_memory_mb", 1));
  if (lines.has("min_battery_percent")) {
    found.min_battery_percent = static_cast<double>(lines.whole("min_battery_percent", 1));
    if (*found.min_battery_percent > 100) wrong("min_battery_percent is out of range");
  }
  return found;
}

Conditions::Conditions(const Asked& asked, Machine machine, std::function<double()> clock)
    : asked_(asked), machine_(std::move(machine)), clock_(std::move(clock)) {}

std::vector<Condition> Conditions::report() {
  std::vector<Condition> found;
  const auto add = [&found](const char* name, bool met, const std::string& now) { found.push_back({name, met, now}); };
  if (!asked_.hours.empty()) {
    const int now = minute_now();
    const bool met = std::any_of(asked_.hours.begin(), asked_.hours.end(), [now](const auto& w) { return inside(w, now); });
    char clock[40];
    std::snprintf(clock, sizeof clock, "it is %02d:%02d", now / 60, now % 60);
    add("hours", met, clock);
  }
  if (asked_.mains_power) {
    const auto power = machine_.mains_power();
    add("mains_power", power.value_or(false), !power ? "not known" : *power ? "on mains power" : "on battery");
  }
  if (!asked_.networks.empty()) {
    const auto kinds = machine_.networks();
    std::string now;
    bool met = kinds.has_value();
    if (kinds)
      for (const std::string& kind : *kinds) {
        now += (now.empty() ? "" : " and ") + kind;
        met = met && std::count(asked_.networks.begin(), asked_.networks.end(), kind) > 0;
      }
    add("networks", met, kinds ? now : "not known");
  }
  if (asked_.min_free_memory_mb) {
    const auto free = machine_.free_memory();
    add("min_free_memory_mb", free && *free >= *asked_.min_free_memory_mb * kMib, said(free, "%.0f MiB free", 1 / kMib));
  }
  if (asked_.min_battery_percent) {
    const auto charge = machine_.battery();
    add("min_battery_percent", charge && *charge >= *asked_.min_battery_percent, said(charge, "%.0f %%"));
  }
  if (asked_.max_temperature_celsius) {
    const auto heat = machine_.temperature();
    add("max_temperature_celsius", heat && *heat <= *asked_.max_temperature_celsius, said(heat, "%.0f degrees"));
  }
  if (asked_.max_load || asked_.pause_when_busy) look();
  if (asked_.max_load) add("max_load", load_ && *load_ <= *asked_.max_load, said(load_, "%.2f for each core by others"));
  if (asked_.pause_when_busy)
    add("pause_when_busy", share_ && calm_, said(share_, "other programs use %.0f %% of the processor", 100));
  return found;
}

std::string Conditions::reasons() {
  const double now = clock_();
  if (now - asked_at_ < 1) return reasons_;
  asked_at_ = now;
  reasons_.clear();
  for (const Condition& one : report())
    if (!one.met) reasons_ += (reasons_.empty() ? "" : "; ") + one.name + ": " + one.found;
  return reasons_;
}

void Conditions::look() {
  const double at = clock_();
  if (last_ && at - last_at_ < kLeastInterval) return;
  const auto usage = machine_.usage();
  if (usage) {
    if (!last_ || !(usage->total > last_->total)) {
      share_.reset();
    } else {
      const double own = std::max(0.0, usage->own - last_->own), passed = at - last_at_, keep = std::exp(-passed / kMinute);
      own_load_ = keep * own_load_ + (1 - keep) * own / passed;
      share_ = std::min(1.0, std::max(0.0, usage->busy - last_->busy - own) / (usage->total - last_->total));
      if (*share_ > kBusy) busy_at_ = at;
      calm_ = at - busy_at_ >= kCalmSeconds;
    }
  }
  last_ = usage;
  last_at_ = at;
  const auto whole = machine_.load();
  // The kernel's average counts this program too, so its own part is taken off.
  const double cores = static_cast<double>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
  load_ = whole && usage ? std::optional(std::max(0.0, *whole - own_load_) / cores) : std::nullopt;
}

}  // namespace fedslm
