// Plans as the queue's database keeps them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "queue/calendar.h"

namespace moebius::queue {

// "begin,end,workers;..." and back; an unreadable text is no plan.
std::string plan_text(const std::vector<Piece>& plan);
std::vector<Piece> parse_plan(std::string_view text);

}  // namespace moebius::queue
