// The node: joins, waits for messages, answers each once, leaves.
#pragma once

#include "client.h"

namespace fedslm {

// Works until told to stop or, with `messages` above 0, until so many were answered.
void run_node(Client& client, long messages);
void stop_node();

}  // namespace fedslm
