#include "base/strict_json.h"

#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "base/error.h"

namespace moebius {
namespace {

using nlohmann::json;

std::string quoted_json(const std::string& text) {
  return json(text).dump(-1, ' ', /*ensure_ascii=*/false, json::error_handler_t::replace);
}

// What stands open at the place that has been read: one entry for each object and list.
class OpenLevels {
 public:
  explicit OpenLevels(const std::string& what) : what_(what) {}

  bool operator()(int /*depth*/, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::object_start:
      case json::parse_event_t::array_start:
        if (levels_.size() == kMostLevels)
          throw_user_error(what_, ": more than ", kMostLevels, " levels of objects and lists");
        levels_.emplace_back();
        break;
      case json::parse_event_t::object_end:
      case json::parse_event_t::array_end:
        levels_.pop_back();
        break;
      case json::parse_event_t::key:
        add_key(parsed.get_ref<const std::string&>());
        break;
      case json::parse_event_t::value:
        break;
    }
    return true;
  }

 private:
  struct Level {
    std::unordered_set<std::string> keys;
    std::string key;  // whose value is being read; empty in a list
  };

  void add_key(const std::string& key) {
    Level& level = levels_.back();
    if (!level.keys.insert(key).second) {
      std::string path;
      for (size_t i = 0; i + 1 < levels_.size(); ++i)
        path +=
            (path.empty() ? " in " : ".") + (levels_[i].key.empty() ? "[]" : levels_[i].key.substr(0, 80));
      throw_user_error(what_, ": the key ", quoted_json(key), " occurs twice", path);
    }
    level.key = key;
  }

  static constexpr size_t kMostLevels = 100;

  const std::string& what_;
  std::vector<Level> levels_;
};

}  // namespace

json parse_strict_json(std::string_view text, const std::string& what) {
  try {
    OpenLevels levels(what);
    return json::parse(text, std::ref(levels));
  } catch (const json::exception& error) {
    std::string reason = error.what();  // "[json.exception.parse_error.101] parse error at line 1, …"
    reason.erase(0, reason.find("] ") + 2);
    throw_user_error(what, " is not JSON: ", reason, "; it may be a broken download: fetch it again");
  }
}

}  // namespace moebius
