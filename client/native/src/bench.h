// What a step costs on this machine.
#pragma once

#include <string>

namespace fedslm {

// Examples of the step's whole length, of random tokens, one after the other: one line of JSON. Linux.
std::string bench(const std::string& folder, long rows);

}  // namespace fedslm
