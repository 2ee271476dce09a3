#include "ckpt/manifest.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/hash.h"
#include "ckpt/text.h"

namespace moebius::ckpt {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 64;
constexpr std::string_view kChecksumBegin = ",\n  \"xxh3\": \"";
constexpr std::string_view kChecksumEnd = "\"\n}\n";
constexpr size_t kChecksumDigits = 16;
constexpr size_t kTailBytes = kChecksumBegin.size() + kChecksumDigits + kChecksumEnd.size();

std::string value_text(const json& value) {
  if (value.is_string()) return in_quotes(value.get_ref<const std::string&>());
  return value.is_primitive() ? value.dump() : concat("an ", value.type_name());
}

// Reads fields of one object and names them in every complaint.
class Fields {
 public:
  Fields(const std::string& file, std::string path, const json& object)
      : file_(file), path_(std::move(path)), object_(object) {
    if (!object.is_object()) fail("", "an object", value_text(object));
  }

  const json& value(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) throw_user_error(file_, ": field ", name(key), " is missing");
    return *found;
  }
  std::string text(const char* key) const {
    const json& found = value(key);
    if (!found.is_string()) fail(key, "a text", value_text(found));
    return found.get<std::string>();
  }
  uint64_t count(const char* key) const {
    const json& found = value(key);
    if (!found.is_number_unsigned()) fail(key, "a whole number from 0", value_text(found));
    const uint64_t number = found.get<uint64_t>();
    if (number > static_cast<uint64_t>(INT64_MAX)) fail(key, "less than 2^63", std::to_string(number));
    return number;
  }
  uint64_t checksum(const char* key) const {
    const std::string digits = text(key);
    uint64_t number = 0;
    bool good = digits.size() == kChecksumDigits;
    for (const char c : digits) {
      const bool decimal = c >= '0' && c <= '9';
      if (!decimal && !(c >= 'a' && c <= 'f')) good = false;
      number = number << 4 | static_cast<uint64_t>(decimal ? c - '0' : c - 'a' + 10);
    }
    if (!good) fail(key, "16 hexadecimal digits", in_quotes(digits));
    return number;
  }
  const json& array(const char* key) const {
    const json& found = value(key);
    if (!found.is_array()) fail(key, "an array", value_text(found));
    return found;
  }
  const json& object(const char* key) const {
    const json& found = value(key);
    if (!found.is_object()) fail(key, "an object", value_text(found));
    return found;
  }
  // Refuses fields that this version does not know.
  void only(std::initializer_list<std::string_view> known) const {
    for (const auto& item : object_.items()) {
      if (std::find(known.begin(), known.end(), item.key()) == known.end()) {
        throw_user_error(file_, ": unknown field ", name(item.key()));
      }
    }
  }
  [[noreturn]] void fail(std::string_view key, std::string_view expected, const std::string& found) const {
    throw_user_error(file_, ": field ", name(key), ": expected ", expected, ", found ", found);
  }

 private:
  std::string name(std::string_view key) const {
    return in_quotes(path_.empty() || key.empty() ? concat(path_, key) : concat(path_, ".", key));
  }

  const std::string& file_;
  std::string path_;
  const json& object_;
};

// Bounded depth, no repeated keys.
json parse_json(const std::string& file, std::string_view text) {
  std::vector<std::set<std::string>> keys;
  const json::parser_callback_t check = [&](int, json::parse_event_t event, json& value) {
    switch (event) {
      case json::parse_event_t::object_start:
      case json::parse_event_t::array_start:
        if (keys.size() == kMaxDepth) throw_user_error(file, ": nested deeper than ", kMaxDepth, " levels");
        keys.emplace_back();
        break;
      case json::parse_event_t::object_end:
      case json::parse_event_t::array_end:
        keys.pop_back();
        break;
      case json::parse_event_t::key:
        if (!keys.back().insert(value.get<std::string>()).second) {
          throw_user_error(file, ": field ", in_quotes(value.get<std::string>()), " appears twice");
        }
        break;
      case json::parse_event_t::value:
        break;
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), check);
  } catch (const json::parse_error& error) {
    throw_user_error(file, ": not valid JSON at byte ", error.byte, " (truncated or damaged)");
  } catch (const json::exception&) {
    throw_user_error(file, ": not valid JSON (a number is out of range)");
  }
}

void check_checksum(const std::string& file, std::string_view text) {
  const std::string_view tail = text.substr(text.size() - std::min(text.size(), kTailBytes));
  if (!tail.starts_with(kChecksumBegin) || !tail.ends_with(kChecksumEnd)) {
    throw_user_error(file, ": does not end with its checksum (edited or reformatted after it was saved)");
  }
  const std::string found = hash_hex(hash64(text.substr(0, text.size() - kTailBytes)));
  const std::string_view expected = tail.substr(kChecksumBegin.size(), kChecksumDigits);
  if (found != expected) {
    throw_user_error(file, ": checksum xxh3 is ", found, ", expected ", expected,
                     " (edited or damaged after it was saved)");
  }
}

bool is_plain_name(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

ManifestShard parse_shard(const std::string& file, size_t index, const json& value) {
  const Fields fields(file, concat("shards[", index, "]"), value);
  fields.only({"file", "group", "bytes", "xxh3"});
  ManifestShard shard{fields.text("file"), fields.text("group"), fields.count("bytes"),
                      fields.checksum("xxh3")};
  if (!is_plain_name(shard.file)) fields.fail("file", "a file name without a folder", in_quotes(shard.file));
  return shard;
}

using ShardIndex = std::unordered_map<std::string, size_t>;  // by file name

ManifestTensor parse_tensor(const std::string& file, const std::string& group, const std::string& name,
                            const json& value, const Manifest& manifest, const ShardIndex& index) {
  const Fields fields(file, concat("groups.", group, ".", name), value);
  fields.only({"dtype", "shape", "shard", "offset"});
  ManifestTensor tensor;
  tensor.spec.name = name;
  const std::string dtype = fields.text("dtype");
  const std::optional<DType> known = dtype_from_name(dtype);
  if (!known) fields.fail("dtype", "a known dtype", in_quotes(dtype));
  tensor.spec.dtype = *known;
  for (const json& dim : fields.array("shape")) {
    if (!dim.is_number_unsigned() || dim.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      fields.fail("shape", "whole numbers from 0", value_text(dim));
    }
    tensor.spec.shape.push_back(dim.get<int64_t>());
  }
  const std::string shard = fields.text("shard");
  const auto found = index.find(shard);
  if (found == index.end() || manifest.shards[found->second].group != group) {
    fields.fail("shard", concat("a shard of group ", in_quotes(group)), in_quotes(shard));
  }
  tensor.shard = found->second;
  const ManifestShard& home = manifest.shards[tensor.shard];
  tensor.offset = fields.count("offset");
  const std::optional<uint64_t> num_bytes = tensor.spec.num_bytes();
  if (!num_bytes || *num_bytes > home.num_bytes || tensor.offset > home.num_bytes - *num_bytes) {
    throw_user_error(file, ": tensor ", in_quotes(name), " of shape ", shape_text(tensor.spec.shape),
                     " at offset ", tensor.offset, " does not fit into ", home.file, " of ", home.num_bytes,
                     " bytes");
  }
  return tensor;
}

}  // namespace

uint64_t Manifest::num_bytes() const {
  uint64_t sum = 0;
  for (const ManifestShard& shard : shards) sum += shard.num_bytes;
  return sum;
}

std::string manifest_text(const Manifest& manifest) {
  json shards = json::array();
  for (const ManifestShard& shard : manifest.shards) {
    shards.push_back({{"file", shard.file},
                      {"group", shard.group},
                      {"bytes", shard.num_bytes},
                      {"xxh3", hash_hex(shard.xxh3)}});
  }
  json groups = json::object();
  for (const ManifestGroup& group : manifest.groups) {
    json& tensors = groups[group.name] = json::object();
    for (const ManifestTensor& tensor : group.tensors) {
      tensors[tensor.spec.name] = {{"dtype", dtype_name(tensor.spec.dtype)},
                                   {"shape", tensor.spec.shape},
                                   {"shard", manifest.shards[tensor.shard].file},
                                   {"offset", tensor.offset}};
    }
  }
  const json state = json::parse(manifest.state_json, nullptr, false);
  MOEBIUS_CHECK(state.is_object(), "checkpoint state is not a JSON object: ", in_quotes(manifest.state_json));
  const json document = {{"format", kManifestFormat},
                         {"version", kManifestVersion},
                         {"step", manifest.step},
                         {"config", manifest.config},
                         {"state", state},
                         {"shards", std::move(shards)},
                         {"groups", std::move(groups)}};
  std::string text = document.dump(2);
  text.resize(text.size() - std::string_view("\n}").size());
  return concat(text, kChecksumBegin, hash_hex(hash64(text)), kChecksumEnd);
}

Manifest parse_manifest(const std::string& file, std::string_view text) {
  const json document = parse_json(file, text);
  if (!document.is_object() || !document.contains("format") || document["format"] != kManifestFormat) {
    throw_user_error(file, ": not the manifest of a Moebius checkpoint (field 'format' is not '",
                     kManifestFormat, "')");
  }
  const Fields fields(file, "", document);
  const uint64_t version = fields.count("version");
  if (version != static_cast<uint64_t>(kManifestVersion)) {
    throw_user_error(file, ": format version ", version, ", but this program reads version ",
                     kManifestVersion,
                     version > kManifestVersion ? "; use the newer Moebius that wrote it" : "");
  }
  check_checksum(file, text);
  fields.only({"format", "version", "step", "config", "state", "shards", "groups", "xxh3"});

  Manifest manifest;
  manifest.step = static_cast<int64_t>(fields.count("step"));
  manifest.config = fields.text("config");
  manifest.state_json = fields.object("state").dump();
  ShardIndex index;
  for (const json& value : fields.array("shards")) {
    manifest.shards.push_back(parse_shard(file, manifest.shards.size(), value));
    if (!index.emplace(manifest.shards.back().file, manifest.shards.size() - 1).second) {
      throw_user_error(file, ": shard ", in_quotes(manifest.shards.back().file), " is listed twice");
    }
  }
  for (const auto& group : fields.object("groups").items()) {
    ManifestGroup& entry = manifest.groups.emplace_back();
    entry.name = group.key();
    if (!group.value().is_object()) fields.fail("groups", "objects of tensors", value_text(group.value()));
    for (const auto& tensor : group.value().items()) {
      entry.tensors.push_back(parse_tensor(file, group.key(), tensor.key(), tensor.value(), manifest, index));
    }
  }
  return manifest;
}

}  // namespace moebius::ckpt
