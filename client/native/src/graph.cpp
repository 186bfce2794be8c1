#include "graph.h"

#include <openssl/bn.h>

#include <algorithm>
#include <memory>
#include <set>

#include "agreed.h"

namespace fedslm {
namespace {

constexpr std::int64_t kSparseFrom = 64, kFewest = 3, kMost = 1 << 16;
constexpr int kLivenessBits = 40, kPrivacyBits = 120;
constexpr std::size_t kLongest = 30;

// A whole number of any size, at least zero.
class Number {
 public:
  explicit Number(std::int64_t value) : value_(BN_new(), BN_free) {
    must(value_ && value >= 0 && BN_set_word(value_.get(), static_cast<BN_ULONG>(value)) == 1);
  }
  static Number decimal(const std::string& digits) {
    Number out(0);
    BIGNUM* into = out.value_.get();
    must(BN_dec2bn(&into, digits.c_str()) == static_cast<int>(digits.size()));
    return out;
  }
  Number(const Number& other) : value_(BN_dup(other.value_.get()), BN_free) { must(value_ != nullptr); }
  Number& operator=(const Number& other) {
    must(BN_copy(value_.get(), other.value_.get()) != nullptr);
    return *this;
  }
  Number& times(std::int64_t factor) {
    must(factor >= 0 && BN_mul_word(value_.get(), static_cast<BN_ULONG>(factor)) == 1);
    return *this;
  }
  // Rounded down.
  Number& over(std::int64_t divisor) {
    must(divisor > 0 && BN_div_word(value_.get(), static_cast<BN_ULONG>(divisor)) != static_cast<BN_ULONG>(-1));
    return *this;
  }
  Number& plus(const Number& other) {
    must(BN_add(value_.get(), value_.get(), other.value_.get()) == 1);
    return *this;
  }
  Number& minus(const Number& other) {
    must(BN_sub(value_.get(), value_.get(), other.value_.get()) == 1 && !BN_is_negative(value_.get()));
    return *this;
  }
  Number& times(const Number& other) {
    const std::unique_ptr<BN_CTX, decltype(&BN_CTX_free)> context(BN_CTX_new(), BN_CTX_free);
    must(context && BN_mul(value_.get(), value_.get(), other.value_.get(), context.get()) == 1);
    return *this;
  }
  Number& shifted(int bits) {
    must(BN_lshift(value_.get(), value_.get(), bits) == 1);
    return *this;
  }
  bool at_most(const Number& other) const { return BN_cmp(value_.get(), other.value_.get()) <= 0; }
  std::int64_t small() const {
    must(BN_num_bits(value_.get()) <= 31);
    return static_cast<std::int64_t>(BN_get_word(value_.get()));
  }

 private:
  static void must(bool holds) {
    if (!holds) throw Refusal("unexpected", "OpenSSL cannot count a cohort");
  }
  std::unique_ptr<BIGNUM, decltype(&BN_free)> value_;
};

// C(n, k), and 0 where k is above n.
Number ways_of(std::int64_t n, std::int64_t k) {
  if (k > n) return Number(0);
  Number out(1);
  for (std::int64_t i = 0; i < std::min(k, n - k); ++i) out.times(n - i).over(i + 1);
  return out;
}

// The least m with events * P(hypergeometric > m) <= 2^-bits.
std::int64_t tail_bound(std::int64_t population, std::int64_t marked, std::int64_t draws, std::int64_t events,
                        int bits) {
  const Number total = ways_of(population, draws);
  std::int64_t m = std::min(marked, draws);
  Number ways = ways_of(marked, m).times(ways_of(population - marked, draws - m)), tail(0);
  for (;;) {
    Number reached = tail;
    if (!reached.plus(ways).times(events).shifted(bits).at_most(total)) return m;
    tail.plus(ways);
    ways.times(m).times(std::max<std::int64_t>(0, population - marked - draws + m));
    ways.over(marked - m + 1).over(draws - m + 1);
    --m;
  }
}

std::int64_t safe_threshold(std::int64_t clients, std::int64_t corrupt, std::int64_t degree) {
  const std::int64_t others = clients - 1, half = degree / 2;
  const std::int64_t around = tail_bound(others, corrupt, degree, 2 * clients, kPrivacyBits);
  const std::int64_t after = tail_bound(others, corrupt, half, 2 * clients, kPrivacyBits);
  return std::max((degree + around) / 2, half + after) + 1;
}

bool sparse_works(std::int64_t clients, std::int64_t corrupt, std::int64_t needed, std::int64_t degree) {
  const std::int64_t missing = tail_bound(clients - 1, clients - needed, degree, clients, kLivenessBits);
  return safe_threshold(clients, corrupt, degree) <= degree - missing;
}

// A small even degree that is safe and live; 0 if everyone must be joined to everyone.
std::int64_t sparse_degree(std::int64_t clients, std::int64_t corrupt, std::int64_t needed) {
  std::int64_t low = 1, high = (clients - 2) / 2;
  if (!sparse_works(clients, corrupt, needed, 2 * high)) return 0;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (sparse_works(clients, corrupt, needed, 2 * middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return 2 * high;
}

// The decimal number of a text: all its digits, and 10 to how many of them follow the point.
struct Decimal {
  explicit Decimal(const std::string& text) : digits(Number(0)), scale(Number(1)) {
    const std::size_t point = text.find('.');
    std::string all = text.substr(0, point);
    if (point != std::string::npos) all += text.substr(point + 1);
    digits = Number::decimal(all);
    if (point != std::string::npos)
      for (std::size_t i = point + 1; i < text.size(); ++i) scale.times(10);
  }
  Number digits, scale;
};

// floor(numerator / scale) by counting up: what is looked for is at most `most`.
std::int64_t quotient(const Number& numerator, const Number& scale, std::int64_t most) {
  std::int64_t low = 0, high = most;
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    if (Number(scale).times(middle).at_most(numerator)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace

double require_fraction(const std::string& text) {
  const bool plain = !text.empty() && text.size() <= kLongest &&
                     text.find_first_not_of("0123456789.") == std::string::npos && text[0] != '.' &&
                     text.back() != '.' && std::count(text.begin(), text.end(), '.') <= 1;
  if (!plain) throw Refusal("unsupported-model", "a fraction of clients is not spelt with plain digits");
  const double value = std::stod(text);
  require(value > 0 && value <= 1, "a fraction of clients is not in (0, 1]");
  return value;
}

Bounds bounds_of(std::int64_t clients, const std::string& honest_fraction, const std::string& survivor_fraction) {
  require_fraction(honest_fraction);
  require_fraction(survivor_fraction);
  if (clients > kMost) throw Refusal("unsupported-model", "this client takes part in cohorts of up to 65,536 clients");
  const Decimal honest(honest_fraction), survive(survivor_fraction);
  Bounds found;
  found.clients = clients;
  const Number helpers = Number(honest.scale).minus(honest.digits).times(clients);
  found.corrupt = quotient(helpers, honest.scale, clients);
  // ceil(s n) = n - floor((1 - s) n)
  const Number leavers = Number(survive.scale).minus(survive.digits).times(clients);
  found.required = clients - quotient(leavers, survive.scale, clients);
  found.quorum = (clients + found.corrupt) / 2 + 1;
  found.degree = clients >= kSparseFrom ? sparse_degree(clients, found.corrupt, found.required) : 0;
  if (found.degree == 0) {
    found.degree = clients - 1;
    found.threshold = (found.degree + found.corrupt) / 2 + 1;
  } else {
    found.threshold = safe_threshold(clients, found.corrupt, found.degree);
  }
  if (!(clients >= kFewest && found.threshold <= std::min(found.degree, found.required - 1) &&
        found.quorum <= found.required))
    throw Refusal("conflicting-settings", "a cohort of " + std::to_string(clients) + " clients cannot be safe");
  return found;
}

Graph::Graph(const std::vector<std::int64_t>& clients, std::int64_t degree, std::string_view seed) : degree_(degree) {
  KeyStream stream(reinterpret_cast<const unsigned char*>(seed.data()), Bytes(12, '\0'));
  std::vector<std::pair<Bytes, std::int64_t>> drawn;
  for (std::int64_t client : clients) {
    Bytes word(16, '\0');
    stream.next(reinterpret_cast<unsigned char*>(word.data()), word.size());
    drawn.emplace_back(std::move(word), client);
  }
  // std::string compares as unsigned bytes.
  std::sort(drawn.begin(), drawn.end());
  for (const auto& [word, client] : drawn) {
    place_[client] = static_cast<std::int64_t>(order_.size());
    order_.push_back(client);
  }
}

std::vector<std::int64_t> Graph::neighbours(std::int64_t client) const {
  const auto size = static_cast<std::int64_t>(order_.size());
  const std::int64_t at = place_.at(client), after = degree_ / 2, before = degree_ - after;
  std::vector<std::int64_t> found;
  for (std::int64_t step = 1; step < size; ++step)
    if (step <= after || step >= size - before) found.push_back(order_[static_cast<std::size_t>((at + step) % size)]);
  std::sort(found.begin(), found.end());
  return found;
}

std::int64_t Graph::point(std::int64_t owner, std::int64_t holder) const {
  const auto size = static_cast<std::int64_t>(order_.size());
  const std::int64_t step = (place_.at(holder) - place_.at(owner) + size) % size;
  return step <= degree_ / 2 ? step : step - (size - 1 - degree_);
}

void Graph::require_kept(const Bounds& bounds, const std::vector<std::int64_t>& members) const {
  if (static_cast<std::int64_t>(members.size()) < bounds.required)
    throw Refusal("quorum", "too few of the announced clients are left");
  const auto size = static_cast<std::int64_t>(order_.size());
  const std::int64_t after = degree_ / 2, before = degree_ - after;
  // How many members stand before each place of the ring, written three times.
  std::vector<std::int64_t> here(order_.size(), 0), sums(3 * order_.size() + 1, 0);
  for (std::int64_t member : members) here[static_cast<std::size_t>(place_.at(member))] = 1;
  for (std::size_t i = 0; i + 1 < sums.size(); ++i) sums[i + 1] = sums[i] + here[i % order_.size()];
  for (std::int64_t member : members) {
    const std::int64_t at = size + place_.at(member);
    const std::int64_t kept = sums[static_cast<std::size_t>(at + after + 1)] - sums[static_cast<std::size_t>(at - before)] - 1;
    if (kept < bounds.threshold) throw Refusal("quorum", "a client has too few of its neighbours left");
  }
}

}  // namespace fedslm
