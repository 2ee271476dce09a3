#include "moe/balance/load_log.h"

#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "base/text_file.h"

namespace moebius::moe {
namespace {

using Json = nlohmann::json;

class LogParser {
 public:
  explicit LogParser(const std::filesystem::path& file) : file_(file) {}

  void line(const std::string& text) {
    ++number_;
    if (text.empty()) return;
    const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded()) refuse("is not valid JSON");
    try {
      if (!json.contains("layers")) return;
      add(json);
    } catch (const Json::exception&) {
      refuse("has no 'step' and 'layers' as `moebius train` writes them");
    }
  }

  LoadLog finish() {
    if (log.steps.empty())
      throw_user_error(file_.string(),
                       ": no step has the load of experts; give the metrics.jsonl of a run of a "
                       "model with experts");
    return std::move(log);
  }

 private:
  void add(const Json& json) {
    LoadLog::Step step;
    step.step = json.at("step");
    if (!log.steps.empty() && step.step <= log.steps.back().step) refuse("goes back to an earlier step");
    const int64_t tokens = json.value("tokens", int64_t{0});
    if (tokens > tokens_ && !log.steps.empty()) step.tokens = tokens - tokens_;
    tokens_ = tokens;
    std::vector<int64_t> layers;
    for (const Json& layer : json.at("layers")) {
      layers.push_back(layer.at("layer"));
      step.shares.push_back(layer.at("load").get<std::vector<double>>());
      normalise(step.shares.back());
    }
    if (log.steps.empty()) log.layers = layers;
    if (layers != log.layers || layers.empty()) refuse("has other layers than the lines before");
    log.steps.push_back(std::move(step));
  }

  void normalise(std::vector<double>& load) {
    if (log.num_experts == 0) log.num_experts = static_cast<int64_t>(load.size());
    double sum = 0;
    for (const double value : load) sum += value < 0 ? -1e300 : value;
    if (static_cast<int64_t>(load.size()) != log.num_experts || !(sum > 0))
      refuse("has a load that does not fit the lines before, or is no load");
    for (double& value : load) value /= sum;
  }

  [[noreturn]] void refuse(const char* why) const {
    throw_user_error(file_.string(), ":", number_, ": the line ", why, "; give a whole metrics.jsonl");
  }

  const std::filesystem::path& file_;
  int64_t number_ = 0, tokens_ = 0;
  LoadLog log;
};

}  // namespace

LoadLog read_load_log(const std::filesystem::path& file) {
  LogParser parser(file);
  std::string rest;
  read_text_pieces(file, "log", "a metrics.jsonl, plain or .gz", [&](std::string_view text) {
    for (size_t end; (end = text.find('\n')) != std::string_view::npos; text.remove_prefix(end + 1)) {
      rest += text.substr(0, end);
      parser.line(rest);
      rest.clear();
    }
    rest += text;
  });
  if (!rest.empty()) parser.line(rest);
  return parser.finish();
}

}  // namespace moebius::moe
