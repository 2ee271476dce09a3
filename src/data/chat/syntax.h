// Chat templates as trees: what the parser makes and the interpreter walks.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/chat/value.h"

namespace moebius::data::chat {

// Throws UserError "<where>, line N: <reason>".
struct Location {
  const std::string* where;
  int line;
  [[noreturn]] void fail(const std::string& reason) const;
};

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum class Kind {
    kConstant,   // value
    kName,       // name
    kList,       // operands
    kTuple,      // operands
    kDict,       // keys and values in turn in operands
    kAttribute,  // operands[0].name
    kItem,       // operands[0][operands[1]]
    kSlice,      // operands[0][operands[1]:operands[2]:operands[3]], null where left out
    kCall,       // operands[0](operands[1…], named)
    kFilter,     // operands[0] | name(operands[1…], named)
    kTest,       // operands[0] is name(operands[1…]); `negative`
    kUnary,      // name: "-", "+", "not"
    kBinary,     // name: "+" … "and", "or", "in", "not in", "=="
    kCondition,  // operands[1] if operands[0] else operands[2] (null: undefined)
  };
  Kind kind = Kind::kConstant;
  int line = 1;
  Value value;
  std::string name;
  bool negative = false;
  std::vector<ExpressionPtr> operands;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
};

struct Statement;
using Block = std::vector<Statement>;

struct Parameter {
  std::string name;
  ExpressionPtr value;  // default, or null
};

struct Statement {
  enum class Kind {
    kText,    // text
    kOutput,  // expressions[0]
    kIf,      // expressions[i] → blocks[i]; one more block is the else
    kFor,  // targets in expressions[0] if expressions[1] (null: all): blocks[0]; blocks[1] when there is none
    kSet,  // targets = expressions[0]; "ns.name" sets a member of a namespace
    kSetBlock,  // targets[0] = the text of blocks[0]
    kMacro,     // text(parameters): blocks[0]
    kBreak,
    kContinue,
    kBlock,  // blocks[0], nothing more ({% generation %})
  };
  Kind kind = Kind::kText;
  int line = 1;
  std::string text;
  std::vector<ExpressionPtr> expressions;
  std::vector<Block> blocks;
  std::vector<std::string> targets;
  std::vector<Parameter> parameters;
};

// Jinja's syntax as `transformers` sets it up: trim_blocks, lstrip_blocks, loop controls.
Block parse_template(const std::string& source, const std::string& where);

}  // namespace moebius::data::chat
