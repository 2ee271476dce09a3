// Every way in which the files of a checkpoint can be wrong, through find_latest as `--resume` uses it.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <random>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/test_folder.h"
#include "ckpt/folder.h"
#include "ckpt/test_tensors.h"

namespace moebius::ckpt {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

void put(const fs::path& path, const std::string& contents) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << contents;
}

// Gives an edited manifest the checksum that fits, as a program would.
std::string resealed(std::string text) {
  text.resize(text.rfind(",\n  \"xxh3\""));
  return text + ",\n  \"xxh3\": \"" + hash_hex(hash64(std::string_view(text))) + "\"\n}\n";
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

class Corruption : public testing::Test {
 protected:
  Corruption() {
    saved_ = example_groups(1);
    for (const int64_t step : {100, 200}) save_checkpoint(run_.path(), {step, "", "{}"}, saved_, {});
    newest_ = step_dir(run_.path(), 200);
    model_ = newest_ / "model-00001-of-00001.safetensors";
    manifest_ = newest_ / "manifest.json";
    good_ = contents_of(newest_);
  }

  void restore() {
    fs::remove_all(newest_);
    fs::create_directories(newest_);
    for (const auto& [name, contents] : good_) put(newest_ / name, contents);
  }

  std::string refusal() {
    return message_of<UserError>([&] { find_latest(run_.path()); });
  }

  // The newest is refused with this reason, and the one before is offered.
  void expect_refused(const std::string& reason) {
    const std::string message = refusal();
    EXPECT_THAT(message, StartsWith(concat("checkpoint '", newest_.string(), "' is refused: ")));
    EXPECT_THAT(message, HasSubstr(reason));
    EXPECT_THAT(message,
                HasSubstr(concat("The previous good checkpoint is '", step_dir(run_.path(), 100).string(),
                                 "': move or remove the broken folder")));
  }

  TestFolder run_;
  std::vector<TensorGroup> saved_;
  fs::path newest_, model_, manifest_;
  std::map<std::string, std::string> good_;
};

TEST_F(Corruption, restored_files_are_accepted) {
  restore();
  EXPECT_EQ(find_latest(run_.path())->step(), 200);
}

TEST_F(Corruption, truncation_anywhere_is_refused) {
  std::mt19937 random(1);
  for (const auto& [name, contents] : good_) {
    for (int i = 0; i < 20; ++i) {
      const size_t length = i == 0 ? 0 : random() % contents.size();
      put(newest_ / name, contents.substr(0, length));
      expect_refused((newest_ / name).string());
    }
    put(newest_ / name, contents);
  }
  put(model_, good_.at(model_.filename()).substr(0, 100));
  expect_refused(
      concat(model_.string(), ": 100 bytes, expected ", good_.at(model_.filename()).size(), " (truncated)"));
}

TEST_F(Corruption, one_flipped_bit_anywhere_is_refused) {
  std::mt19937 random(2);
  for (const auto& [name, contents] : good_) {
    for (int i = 0; i < 40; ++i) {
      std::string damaged = contents;
      const size_t at = random() % damaged.size();
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << random() % 8));
      put(newest_ / name, damaged);
      expect_refused((newest_ / name).string());
    }
    put(newest_ / name, contents);
  }
}

TEST_F(Corruption, missing_files_are_refused) {
  fs::remove(model_);
  expect_refused(concat(model_.string(), ": missing, but the manifest lists it"));
  restore();
  fs::remove(manifest_);
  expect_refused(
      concat(manifest_.string(), ": missing; the folder is not a checkpoint, or not a complete one"));
  fs::remove_all(newest_);
  put(newest_, "a file");
  expect_refused("is not a folder");
}

TEST_F(Corruption, added_bytes_are_refused) {
  put(model_, good_.at(model_.filename()) + "x");
  expect_refused("(something was added)");
}

TEST_F(Corruption, foreign_and_newer_manifests_are_refused) {
  put(manifest_, R"({"weight_map": {"a": "model.safetensors"}})");
  expect_refused(concat(manifest_.string(), ": not the manifest of a Moebius checkpoint"));
  put(manifest_, replaced(good_.at("manifest.json"), "\"version\": 1", "\"version\": 9"));
  expect_refused(concat(manifest_.string(), ": format version 9, but this program reads version 1"));
  put(manifest_, "PK\x03\x04 not json");
  expect_refused(concat(manifest_.string(), ": not valid JSON at byte"));
}

TEST_F(Corruption, edited_manifests_are_refused_even_with_a_new_checksum) {
  const std::string good = good_.at("manifest.json");
  put(manifest_, replaced(good, "\"step\": 200", "\"step\": 201"));
  expect_refused("(edited or damaged after it was saved)");
  put(manifest_, resealed(replaced(good, "\"step\": 200", "\"step\": 201")));
  expect_refused("step 201, but the folder is named for step 200");
  put(manifest_, resealed(replaced(good, "\"w.m\"", "\"w.x\"")));
  expect_refused("tensor 'w.x' is missing, but the manifest lists it");
  put(manifest_, resealed(replaced(good, "64,\n          33", "33,\n          64")));
  expect_refused("is F32 [64, 33] at offset");
}

TEST_F(Corruption, tensors_that_the_manifest_does_not_list_are_refused) {
  // A whole, valid shard of another save with one tensor more, entered into the manifest with its size and
  // checksum.
  const TestFolder other;
  std::vector<TensorGroup> more = saved_;
  more[1].tensors.push_back({"w.zzz", at::ones({1})});
  const fs::path other_path = save_checkpoint(other.path(), {200, "", "{}"}, more, {});
  const std::string shard = "optimizer-00001-of-00001.safetensors";
  const std::string foreign = read_file(other_path / shard);
  put(newest_ / shard, foreign);
  const Manifest manifest = parse_manifest("m", good_.at("manifest.json"));
  std::string text = good_.at("manifest.json");
  text = replaced(text, concat("\"bytes\": ", good_.at(shard).size()), concat("\"bytes\": ", foreign.size()));
  text = replaced(text, hash_hex(hash64(std::string_view(good_.at(shard)))),
                  hash_hex(hash64(std::string_view(foreign))));
  const Manifest theirs = parse_manifest("m", read_file(other_path / "manifest.json"));
  for (const char* name : {"w.m", "w.master", "w.v"}) {
    const auto offset = [&](const Manifest& m) {
      for (const ManifestTensor& tensor : m.groups[1].tensors) {
        if (tensor.spec.name == name) return tensor.offset;
      }
      return uint64_t{0};
    };
    const size_t at = text.find(concat("\"", name, "\""));
    const std::string from = concat("\"offset\": ", offset(manifest));
    text.replace(text.find(from, at), from.size(), concat("\"offset\": ", offset(theirs)));
  }
  put(manifest_, resealed(text));
  expect_refused(concat((newest_ / shard).string(), ": tensor 'w.zzz' is not listed in the manifest"));
}

TEST_F(Corruption, checkpoints_swapped_between_folders_are_refused) {
  fs::remove_all(newest_);
  fs::rename(step_dir(run_.path(), 100), newest_);
  EXPECT_THAT(refusal(), AllOf(HasSubstr("step 100, but the folder is named for step 200"),
                               HasSubstr("There is no other good checkpoint in")));
}

TEST_F(Corruption, the_nearest_good_one_is_offered) {
  save_checkpoint(run_.path(), {300, "", "{}"}, saved_, {.keep = 9});
  put(step_dir(run_.path(), 300) / "manifest.json", "");
  fs::remove(model_);
  EXPECT_THAT(refusal(),
              HasSubstr(concat("The previous good checkpoint is '", step_dir(run_.path(), 100).string())));
}

TEST_F(Corruption, without_another_good_one_the_message_says_so) {
  fs::remove_all(step_dir(run_.path(), 100));
  fs::remove(manifest_);
  EXPECT_THAT(refusal(),
              HasSubstr(concat("There is no other good checkpoint in '", (run_ / "checkpoints").string(),
                               "': restore it from a copy, or start again with --overwrite")));
}

}  // namespace
}  // namespace moebius::ckpt
