// Several passes through a model in turns, on one thread: where one would wait for what is on its way, the
// next one goes on. Each has a stack of its own; who goes on when is fixed by the places where they pass
// their turn, never by time, so that ranks with the same passes begin the same exchanges in the same order.
// Nodes of autograd are numbered in the order in which they are made, whoever makes them, and are run in the
// reverse of it: a backward pass over the sum of what the passes return takes the same turns, backwards.
#pragma once

#include <functional>
#include <vector>

namespace moebius::parallel {

// Runs all bodies to their ends: the first until it passes its turn, then the second, …, round and round. An
// error of one ends the others at the place where they stand (their stacks are unwound) and is thrown again.
// Autograd's state (whether gradients are wanted) is each body's own. Not within a body.
void take_turns(const std::vector<std::function<void()>>& bodies);

// In a body: the others go on until it is this one's turn again. Elsewhere nothing. Never in a catch block or
// a destructor.
void pass_turn();

}  // namespace moebius::parallel
