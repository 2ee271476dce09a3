#include "ops/product_table.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <system_error>

#include "base/concat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/strict_json.h"

namespace moebius::ops {
namespace {

using kernels::GroupedGemmKind;
using Json = nlohmann::ordered_json;

constexpr int64_t kFormat = 1;
constexpr double kFarthest = 2.0;  // factor between numbers of rows

constexpr const char* kKinds[] = {"forward", "input_grad", "weight_grad"};
constexpr const char* kRouted[] = {"none", "a", "b"};

template <class T, size_t COUNT>
T word_in(const nlohmann::json& json, const char* field, const char* const (&words)[COUNT]) {
  const auto word = json.at(field).get<std::string>();
  for (size_t i = 0; i < COUNT; ++i)
    if (word == words[i]) return static_cast<T>(i);
  throw std::invalid_argument(concat(field, " is '", word, "'"));
}

int64_t positive_in(const nlohmann::json& json, const char* field) {
  const nlohmann::json& value = json.at(field);
  if (!value.is_number_integer() || value.get<int64_t>() <= 0)
    throw std::invalid_argument(concat(field, " is ", value.dump(), ", not a positive whole number"));
  return value.get<int64_t>();
}

Json to_json(const ProductTable::Entry& entry) {
  const ProductKey& key = entry.key;
  return {{"kind", kKinds[static_cast<size_t>(key.kind)]},
          {"activated", key.activated},
          {"routed", kRouted[static_cast<size_t>(key.routed)]},
          {"n", key.n},
          {"k", key.k},
          {"groups", key.num_groups},
          {"rows", key.num_rows},
          {"copy_rows", entry.way.copy_rows},
          {"variant", entry.way.variant},
          {"ms", entry.ms}};
}

ProductTable::Entry entry_of(const nlohmann::json& json) {
  return {{word_in<GroupedGemmKind>(json, "kind", kKinds), json.at("activated").get<bool>(),
           word_in<RoutedOperand>(json, "routed", kRouted), positive_in(json, "n"), positive_in(json, "k"),
           positive_in(json, "groups"), positive_in(json, "rows")},
          {json.at("copy_rows").get<bool>(), json.at("variant").get<std::string>()},
          json.at("ms").get<double>()};
}

// The devices of a file's text.
nlohmann::json devices_in(std::string_view text, const std::string& what) {
  const auto refuse = [&](const std::string& why) {
    throw_user_error(what, " is no table of measured products: ", why,
                     "; remove it, or measure a new one with moebius bench moe_layer --tune");
  };
  const nlohmann::json json = parse_strict_json(text, what);
  if (!json.is_object() || !json.contains("format") || !json.contains("devices")) refuse("it has no format");
  if (json.at("format") != kFormat)
    refuse(concat("its format is ", json.at("format").dump(), ", this program reads ", kFormat));
  if (!json.at("devices").is_object()) refuse("its devices are no object");
  return json.at("devices");
}

ProductTable& table_in_use() {
  static ProductTable table;
  return table;
}

}  // namespace

ProductKey key_of(const kernels::GroupedGemmArgs& args) {
  const RoutedOperand routed = args.a_index != nullptr   ? RoutedOperand::a
                               : args.b_index != nullptr ? RoutedOperand::b
                                                         : RoutedOperand::none;
  return {args.kind, args.act != nullptr, routed, args.n, args.k, args.num_groups, args.num_rows};
}

ProductTable ProductTable::parse(std::string_view text, const std::string& device, const std::string& what) {
  const nlohmann::json devices = devices_in(text, what);
  ProductTable table;
  if (!devices.contains(device)) return table;
  try {
    for (const nlohmann::json& each : devices.at(device)) table.add(entry_of(each));
  } catch (const std::exception& error) {
    throw_user_error(what, " is no table of measured products: among those of ", device, ", ", error.what(),
                     "; remove it, or measure a new one with moebius bench moe_layer --tune");
  }
  return table;
}

std::string ProductTable::text(const std::string& device, std::string_view before,
                               const std::string& what) const {
  Json devices = Json::object();
  if (!before.empty()) {
    const nlohmann::json others = devices_in(before, what);
    for (const auto& [name, table] : others.items()) devices[name] = table;
  }
  devices[device] = Json::array();
  for (const Entry& entry : entries_) devices[device].push_back(to_json(entry));
  return Json{{"format", kFormat}, {"devices", devices}}.dump(1) + "\n";
}

void ProductTable::add(Entry entry) {
  const auto same =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.key == entry.key; });
  if (same != entries_.end()) {
    *same = std::move(entry);
  } else {
    entries_.push_back(std::move(entry));
  }
}

const ProductWay* ProductTable::find(const ProductKey& key) const {
  const ProductWay* nearest = nullptr;
  double least = std::log(kFarthest) + 1e-9;
  for (const Entry& entry : entries_) {
    ProductKey same_rows = entry.key;
    same_rows.num_rows = key.num_rows;
    if (same_rows != key) continue;
    const double distance =
        std::abs(std::log(static_cast<double>(key.num_rows) / static_cast<double>(entry.key.num_rows)));
    if (distance >= least) continue;
    least = distance;
    nearest = &entry.way;
  }
  return nearest;
}

std::filesystem::path default_product_table_path() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache == '/')
    return std::filesystem::path(cache) / "moebius" / "products.json";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/')
    return std::filesystem::path(home) / ".cache" / "moebius" / "products.json";
  return {};
}

const ProductTable& product_table() {
  return table_in_use();
}

void set_product_table(ProductTable table) {
  table_in_use() = std::move(table);
}

void use_product_table(const std::filesystem::path& path, const std::string& device) {
  ProductTable table = ProductTable::parse(read_file(path), device, path.string());
  if (table.entries().empty())
    log_warn(path.string(), " has no products measured on ", device, "; they go by the built-in rules");
  set_product_table(std::move(table));
}

void use_default_product_table(const std::string& device) {
  const std::filesystem::path path = default_product_table_path();
  std::error_code error;
  if (path.empty() || !std::filesystem::exists(path, error)) return;
  try {
    use_product_table(path, device);
  } catch (const std::exception& failure) {
    log_warn("products go by the built-in rules: ", failure.what());
  }
}

}  // namespace moebius::ops
