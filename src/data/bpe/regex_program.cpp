// Parses a pattern into a tree and compiles the tree from its end to its beginning, so that each node knows
// its successor.
#include "data/bpe/regex_program.h"

#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "data/bpe/regex_syntax.h"

namespace moebius::data {

class RegexCompiler {
 public:
  RegexCompiler(RegexProgram& program, const std::string& where) : program_(program), where_(where) {}

  // The first node of `tree`, followed by node `next`.
  int32_t compile(const RegexTree& tree, int32_t next) {
    switch (tree.kind) {
      case RegexTree::Kind::kSet:
        return run(tree.set, 1, 1, RegexProgram::Mode::kGreedy, next);
      case RegexTree::Kind::kSequence: {
        for (size_t i = tree.children.size(); i-- > 0;) next = compile(tree.children[i], next);
        return next;
      }
      case RegexTree::Kind::kAlternatives: {
        RegexProgram::Node node;
        node.kind = RegexProgram::Kind::kAlternatives;
        for (const RegexTree& child : tree.children) node.branches.push_back(compile(child, next));
        return add(std::move(node));
      }
      case RegexTree::Kind::kRepeat:
        return repeat(tree, next);
      case RegexTree::Kind::kLookAhead:
      case RegexTree::Kind::kAtomic: {
        RegexProgram::Node node;
        node.kind = tree.kind == RegexTree::Kind::kAtomic ? RegexProgram::Kind::kAtomic
                                                          : RegexProgram::Kind::kLookAhead;
        node.negative = tree.negative;
        node.branches = {compile(tree.children[0], accept())};
        node.next = next;
        return add(std::move(node));
      }
      case RegexTree::Kind::kLookBehind: {
        RegexProgram::Node node;
        node.kind = RegexProgram::Kind::kLookBehind;
        node.negative = tree.negative;
        node.set = tree.set;
        node.next = next;
        return add(std::move(node));
      }
      case RegexTree::Kind::kAnchor: {
        RegexProgram::Node node;
        node.kind = tree.anchor;
        node.next = next;
        return add(std::move(node));
      }
    }
    return next;
  }

  int32_t accept() { return add({}); }

 private:
  int32_t add(RegexProgram::Node node) {
    if (program_.size() >= kMaxNodes)
      throw_user_error(where_, ": the regular expression is too large once its repetitions are written out");
    node.first = first_of(node);
    program_.nodes_.push_back(std::move(node));
    return static_cast<int32_t>(program_.nodes_.size()) - 1;
  }

  int32_t run(const CharSet& set, uint32_t min, uint32_t max, RegexProgram::Mode mode, int32_t next) {
    RegexProgram::Node node;
    node.kind = RegexProgram::Kind::kRun;
    node.mode = mode;
    node.min = min;
    node.max = max;
    node.set = set;
    node.next = next;
    return add(std::move(node));
  }

  int32_t repeat(const RegexTree& tree, int32_t next) {
    const RegexTree& body = tree.children[0];
    if (body.kind == RegexTree::Kind::kSet) return run(body.set, tree.min, tree.max, tree.mode, next);
    if (tree.max == RegexProgram::kUnbounded) {
      throw_user_error(where_, ": the regular expression repeats a group without an upper bound, ",
                       "which is not supported; only single characters and classes can take * and +");
    }
    if (tree.mode == RegexProgram::Mode::kPossessive) {
      RegexProgram::Node node;
      node.kind = RegexProgram::Kind::kAtomic;
      node.branches = {copies(body, tree.min, tree.max, /*lazy=*/false, accept())};
      node.next = next;
      return add(std::move(node));
    }
    return copies(body, tree.min, tree.max, tree.mode == RegexProgram::Mode::kLazy, next);
  }

  // x{2,4} as x x (x (x)?)?
  int32_t copies(const RegexTree& body, uint32_t min, uint32_t max, bool lazy, int32_t next) {
    int32_t at = next;
    for (uint32_t i = min; i < max; ++i) {
      RegexProgram::Node node;
      node.kind = RegexProgram::Kind::kAlternatives;
      const int32_t more = compile(body, at);
      node.branches = lazy ? std::vector<int32_t>{next, more} : std::vector<int32_t>{more, next};
      at = add(std::move(node));
    }
    for (uint32_t i = 0; i < min; ++i) at = compile(body, at);
    return at;
  }

  FirstCharacters first_of(const RegexProgram::Node& node) const {
    FirstCharacters first;
    const auto unite = [&](const FirstCharacters& other) {
      first.ascii[0] |= other.ascii[0];
      first.ascii[1] |= other.ascii[1];
      first.other |= other.other;
      first.empty |= other.empty;
    };
    switch (node.kind) {
      case RegexProgram::Kind::kRun:
        for (uint32_t code = 0; code < 128; ++code)
          if (node.set.contains(code)) first.ascii[code >> 6] |= uint64_t{1} << (code & 63);
        first.other = true;
        if (node.min == 0) unite(program_.node(node.next).first);
        break;
      case RegexProgram::Kind::kAlternatives:
        for (const int32_t branch : node.branches) unite(program_.node(branch).first);
        break;
      case RegexProgram::Kind::kAccept:
        first.empty = true;
        break;
      case RegexProgram::Kind::kAtomic:
        first = program_.node(node.branches[0]).first;
        if (first.empty) unite(program_.node(node.next).first);
        break;
      default:  // looks and anchors consume nothing: whatever comes after them
        first = program_.node(node.next).first;
    }
    return first;
  }

  static constexpr size_t kMaxNodes = 20000;

  RegexProgram& program_;
  const std::string& where_;
};

RegexProgram::RegexProgram(const std::string& pattern, const std::string& where) {
  const RegexTree tree = parse_regex(pattern, where);
  RegexCompiler compiler(*this, where);
  start_ = compiler.compile(tree, compiler.accept());
}

}  // namespace moebius::data
