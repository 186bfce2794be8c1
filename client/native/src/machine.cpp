#include "machine.h"

#include <dirent.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <vector>

namespace fedslm {
namespace {

using Text = std::optional<std::string>;

Text text_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return {};
  std::string all{std::istreambuf_iterator<char>(in), {}};
  if (in.bad()) return {};
  const char* const white = " \t\r\n";
  const std::size_t first = all.find_first_not_of(white);
  return first == std::string::npos ? "" : all.substr(first, all.find_last_not_of(white) - first + 1);
}

// A plain decimal number; nothing for any other word.
std::optional<double> number(const Text& word) {
  if (!word || std::count(word->begin(), word->end(), '.') > 1) return {};
  if (word->find_first_not_of("0123456789.") != std::string::npos) return {};
  if (word->find_first_of("0123456789") == std::string::npos) return {};
  return std::strtod(word->c_str(), nullptr);
}

std::vector<std::string> words(const std::string& line) {
  std::istringstream in(line);
  return {std::istream_iterator<std::string>(in), {}};
}

std::vector<std::string> lines(const Text& text) {
  std::vector<std::string> found;
  std::istringstream in(text.value_or(""));
  for (std::string line; std::getline(in, line);) found.push_back(line);
  return found;
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> found;
  DIR* open = opendir(folder.c_str());
  if (open == nullptr) return found;
  while (const dirent* one = readdir(open))
    if (one->d_name[0] != '.') found.emplace_back(one->d_name);
  closedir(open);
  std::sort(found.begin(), found.end());
  return found;
}

bool there(const std::string& path) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0;
}

bool up(const std::string& flags) { return (std::strtol(flags.c_str(), nullptr, 16) & 1) != 0; }
bool starts(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }

// What a control group has left; files that it only caches do not count.
std::optional<double> room(const std::string& folder) {
  const auto limit = number(text_of(folder + "/memory.max")), used = number(text_of(folder + "/memory.current"));
  if (!limit || !used) return {};
  double cached = 0;
  for (const std::string& line : lines(text_of(folder + "/memory.stat")))
    if (starts(line, "inactive_file ")) cached += number(words(line).at(1)).value_or(0);
  return std::max(0.0, *limit - *used + cached);
}

}  // namespace

std::optional<bool> Machine::mains_power() const {
  const std::string folder = sys_ + "class/power_supply/";
  std::vector<Text> batteries, sources;
  for (const std::string& name : names_in(folder)) {
    const std::string kind = text_of(folder + name + "/type").value_or("");
    if (text_of(folder + name + "/scope") == "Device") continue;  // the battery of a mouse
    if (kind == "Battery")
      batteries.push_back(text_of(folder + name + "/status"));
    else if (kind == "Mains" || starts(kind, "USB") || starts(kind, "Wireless"))
      sources.push_back(text_of(folder + name + "/online"));
  }
  const auto is = [](const char* word) { return [word](const Text& text) { return text == std::string(word); }; };
  if (std::any_of(batteries.begin(), batteries.end(), is("Discharging"))) return false;
  if (std::any_of(sources.begin(), sources.end(), [](const Text& t) { return t && !t->empty() && *t != "0"; })) return true;
  const auto fed = [](const Text& t) { return t == std::string("Charging") || t == std::string("Full"); };
  if (!batteries.empty() && std::all_of(batteries.begin(), batteries.end(), fed)) return true;
  if (!sources.empty() && std::all_of(sources.begin(), sources.end(), is("0"))) return false;
  return {};
}

std::optional<double> Machine::battery() const {
  const std::string folder = sys_ + "class/power_supply/";
  std::optional<double> least;
  for (const std::string& name : names_in(folder)) {
    if (text_of(folder + name + "/scope") == "Device" || text_of(folder + name + "/type") != "Battery") continue;
    const auto charge = number(text_of(folder + name + "/capacity"));
    if (!charge || *charge > 100) return {};
    least = least ? std::min(*least, *charge) : *charge;
  }
  return least;
}

std::optional<double> Machine::temperature() const {
  const std::string folder = sys_ + "class/thermal/";
  std::optional<double> most;
  for (const std::string& name : names_in(folder)) {
    const auto thousandths = number(text_of(folder + name + "/temp"));
    // A sensor that is off says 0 or less.
    if (thousandths && *thousandths != 0) most = std::max(most.value_or(0), *thousandths / 1000);
  }
  return most;
}

std::optional<std::set<std::string>> Machine::networks() const {
  std::set<std::string> found;
  for (const std::string& name : outward()) found.insert(kind(name, 4));
  if (found.empty() || found.count("")) return {};
  return found;
}

std::set<std::string> Machine::outward() const {
  std::vector<std::pair<long, std::string>> routes;
  const std::vector<std::string> old = lines(text_of(proc_ + "net/route"));
  for (std::size_t i = 1; i < old.size(); ++i) {
    const auto w = words(old[i]);
    if (w.size() >= 8 && w[1] == "00000000" && w[7] == "00000000" && up(w[3]))
      routes.emplace_back(std::strtol(w[6].c_str(), nullptr, 10), w[0]);
  }
  for (const std::string& line : lines(text_of(proc_ + "net/ipv6_route"))) {
    const auto w = words(line);
    if (w.size() >= 10 && w[0] == std::string(32, '0') && w[1] == "00" && w[9] != "lo" && up(w[8]))
      routes.emplace_back(std::strtol(w[5].c_str(), nullptr, 16), w[9]);
  }
  std::set<std::string> found;
  if (routes.empty()) return found;
  const long least = std::min_element(routes.begin(), routes.end())->first;
  for (const auto& [metric, name] : routes)
    if (metric == least) found.insert(name);
  return found;
}

std::string Machine::kind(const std::string& interface, int depth) const {
  // A phone that shares its connection over USB looks like an Ethernet card, except for its driver.
  static const std::set<std::string> phones = {"cdc_mbim", "huawei_cdc_ncm", "ipheth", "qmi_wwan", "rndis_host"};
  static const std::set<std::string> unclear = {"cdc_eem", "cdc_ether", "cdc_ncm"};
  const std::string folder = sys_ + "class/net/" + interface;
  std::string type;
  for (const std::string& line : lines(text_of(folder + "/uevent")))
    if (starts(line, "DEVTYPE=")) type = line.substr(8);
  if (there(folder + "/wireless") || there(folder + "/phy80211") || type == "wlan") return "wifi";
  if (type == "wwan" || starts(interface, "wwan")) return "mobile";
  std::set<std::string> below;
  for (const std::string& name : names_in(folder))
    if (starts(name, "lower_") && depth > 0) below.insert(kind(name.substr(6), depth - 1));
  if (!below.empty()) return below.size() == 1 ? *below.begin() : "";
  if (!type.empty() || text_of(folder + "/type") != "1" || !there(folder + "/device")) return "";
  char resolved[PATH_MAX];
  if (realpath((folder + "/device/driver").c_str(), resolved) == nullptr) return "wired";
  const std::string path = resolved, driver = path.substr(path.rfind('/') + 1);
  if (phones.count(driver)) return "mobile";
  return unclear.count(driver) ? "" : "wired";
}

std::optional<double> Machine::load() const {
  const auto w = words(text_of(proc_ + "loadavg").value_or(""));
  return w.empty() ? std::nullopt : number(w[0]);
}

std::optional<Usage> Machine::usage() const {
  const auto all = lines(text_of(proc_ + "stat"));
  const auto w = words(all.empty() ? "" : all[0]);
  if (w.size() < 9 || w[0] != "cpu") return {};
  const double hertz = static_cast<double>(sysconf(_SC_CLK_TCK));
  double ticks[8], total = 0;
  for (int i = 0; i < 8; ++i) {
    const auto one = number(w[static_cast<std::size_t>(i) + 1]);
    if (!one) return {};
    total += ticks[i] = *one;
  }
  // Waiting for a disk is idle, and what other virtual machines took is nobody's here.
  const double idle = ticks[3] + ticks[4] + ticks[7];
  double own = 0;
  const std::string said = text_of(proc_ + process_ + "/stat").value_or("");
  const std::size_t name = said.rfind(')');
  const auto fields = words(name == std::string::npos ? "" : said.substr(name + 1));
  for (std::size_t i = 11; i < std::min<std::size_t>(15, fields.size()); ++i) own += number(fields[i]).value_or(0);
  return Usage{(total - idle) / hertz, total / hertz, own / hertz};
}

std::optional<double> Machine::free_memory() const {
  std::optional<double> left;
  for (const std::string& line : lines(text_of(proc_ + "meminfo")))
    if (starts(line, "MemAvailable") && !left && words(line).size() > 1) left = number(words(line)[1]);
  if (!left) return {};
  left = *left * 1024;
  std::vector<std::string> parts;
  for (const std::string& line : lines(text_of(proc_ + "self/cgroup")))
    if (starts(line, "0::") && parts.empty()) {
      std::istringstream in(line.substr(3));
      for (std::string part; std::getline(in, part, '/');)
        if (!part.empty() && part != "." && part != "..") parts.push_back(part);
    }
  std::string folder = sys_ + "fs/cgroup";
  for (std::size_t i = 0;; folder += "/" + parts[i++]) {
    if (const auto found = room(folder)) left = std::min(*left, *found);
    if (i == parts.size()) return left;
  }
}

}  // namespace fedslm
