#include "bench.h"

#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "noise.h"
#include "step.h"

namespace fedslm {
namespace {

constexpr long kMostRows = 1000000;
constexpr double kFactors = 0.02;  // the size of the random factors

struct Drawn {  // splitmix64: the same numbers everywhere, and nothing secret
  std::uint64_t state = 7;
  std::uint64_t next() {
    std::uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  double unit() { return static_cast<double>(next() >> 11) / 9007199254740992.0; }
};

// The processor's time of this process, all threads together.
double spent() {
  timespec now{};
  if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now) != 0) throw Refusal("usage", "there is no clock");
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// A line of /proc/self/status such as VmRSS, in bytes.
long long memory(const std::string& name) {
  std::FILE* file = std::fopen("/proc/self/status", "r");
  if (file == nullptr) throw Refusal("usage", "bench reads Linux's process table");
  char line[256];
  long long kilobytes = -1;
  while (std::fgets(line, sizeof line, file) != nullptr)
    if (name.compare(0, name.size(), line, name.size()) == 0) kilobytes = std::atoll(line + name.size() + 1);
  std::fclose(file);
  if (kilobytes < 0) throw Refusal("usage", "bench reads Linux's process table");
  return 1024 * kilobytes;
}

void forget_peak() {
  std::FILE* file = std::fopen("/proc/self/clear_refs", "w");
  if (file == nullptr || std::fputs("5", file) < 0 || std::fclose(file) != 0)
    throw Refusal("usage", "the kernel does not forget the largest size of a process");
}

std::string number(double value) {
  char out[40];
  std::snprintf(out, sizeof out, "%.9g", value);
  return out;
}

Example example_of(const Manifest& manifest, Drawn& drawn) {
  const auto length = static_cast<std::size_t>(manifest.length);
  Example found{Secret<std::int64_t>(length), Secret<std::int64_t>(length)};
  for (std::size_t i = 0; i < length; ++i)
    found.ids[i] = found.labels[i] =
        static_cast<std::int64_t>(drawn.next() % static_cast<std::uint64_t>(manifest.vocabulary));
  return found;
}

}  // namespace

std::string bench(const std::string& folder, long rows) {
  if (rows < 1 || rows > kMostRows) throw Refusal("invalid-value", "bench takes 1 to 1000000 rows");
  const long long resident = memory("VmRSS");
  forget_peak();
  const double began = spent();
  Bytes said = read_file(folder + "/step.json", 1 << 22);
  while (!said.empty() && said.back() == '\n') said.pop_back();
  const Manifest manifest = Manifest::load(folder, sha256(said));
  const std::unique_ptr<Engine> engine = open_engine(folder, manifest);
  const double loading = spent() - began;
  const long long loaded = memory("VmHWM");
  forget_peak();
  Drawn drawn;
  Floats factors(manifest.size("AB"));
  for (float& value : factors) value = static_cast<float>(kFactors * std::sqrt(12.0) * (drawn.unit() - 0.5));
  std::string seconds;
  double norm = 0;
  for (long row = -1; row < rows; ++row) {  // the first is not timed
    const Example example = example_of(manifest, drawn);
    const double start = spent();
    const Floats found = engine->gradient(example, factors);
    const double length = norm_of(found);
    if (row < 0) {
      norm = length;
    } else {
      seconds += (row > 0 ? ", " : "") + number(spent() - start);
    }
  }
  const long long working = memory("VmHWM");
  return "{\"status\": \"measured\", \"resident_bytes\": " + std::to_string(resident) +
         ", \"load_seconds\": " + number(loading) +
         ", \"load_peak_bytes\": " + std::to_string(std::max(0ll, loaded - resident)) +
         ", \"peak_bytes\": " + std::to_string(std::max(0ll, working - resident)) +
         ", \"process_bytes\": " + std::to_string(std::max(loaded, working)) + ", \"norm\": " + number(norm) +
         ", \"seconds\": [" + seconds + "]}";
}

}  // namespace fedslm
