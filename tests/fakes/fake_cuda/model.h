// What the stand-in for the driver knows of graphs. Nothing is ever freed: a handle is known after its end.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

typedef int Status;
enum { OK = 0, INVALID_VALUE = 1, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700,
       NOT_SUPPORTED = 801 };
enum { KERNEL = 0, MEMCPY = 1, MEMSET = 2, CHILD = 4, EMPTY = 5, ALLOCATE = 10, FREE = 11, CONDITIONAL = 13 };

struct KernelParams {
    void *func; unsigned grid[3], block[3], shared; void **values; void **extra; void *kern; void *context;
};
struct ConditionalParams { uint64_t handle; int type; unsigned size; void **bodies; void *context; };
struct NodeParams {
    int type; int reserved0[3];
    union { int64_t words[29]; KernelParams kernel; ConditionalParams conditional; };
    int64_t reserved2;
};
struct EdgeData { uint8_t from_port, to_port, type, reserved[5]; };

struct Graph;
struct Node {
    int kind = EMPTY;
    std::vector<Node *> after;
    Graph *child = nullptr;             // of a child graph's node
    void *function = nullptr;           // of a kernel's node that was added by a call, and its arguments
    uint64_t arguments[2] = {0, 0};
    uint64_t handle = 0;                // of a conditional node, and its bodies
    std::vector<Graph *> bodies;
    Graph *graph = nullptr;
};
struct Graph {
    std::string name;                   // of a graph that the test made
    bool owned = true, alive = true;    // owned: by the caller, who is to destroy it
    std::vector<Node *> nodes;
    void *context = nullptr;            // of its kernels, if the test made it
    const uint8_t *from = nullptr; uint8_t *to = nullptr;  // what its kernels do: copy one byte
    uint64_t number = 0;                // in the journal
};
struct Handle { Graph *graph; void *context; unsigned value, flags; bool used; };
struct Executable { Graph *graph; bool alive = true; };

static int version = 13000, failing_status = 0;
static bool kernel_runs = true;
static void *context = reinterpret_cast<void *>(uintptr_t(0xC0FFEE00000ull));
static std::string failing, journal, runs;
static std::set<Graph *> graphs;
static std::set<Node *> nodes;
static std::set<Executable *> executables;
static std::map<void *, void *> modules, functions;  // -> the context that they were made in
static std::map<uint64_t, Handle> handles;

static std::string text(uint64_t number) { return std::to_string(number); }
static void note(const std::string &line) { journal += line + "\n"; }
// Whether this call is the one that the test wants to fail.
static Status fails(const char *function) {
    if (failing != function) return OK;
    failing.clear();
    note("failed " + std::string(function));
    return failing_status;
}
static bool known(Graph *graph) { return graphs.count(graph) && graph->alive; }
static Graph *new_graph(bool owned, bool numbered = false) {
    static uint64_t last = 0;
    Graph *graph = new Graph;
    graph->owned = owned;
    if (numbered) graph->number = ++last;
    graphs.insert(graph);
    return graph;
}
static Graph *copied(Graph *graph) {
    Graph *copy = new_graph(false);
    copy->name = graph->name, copy->context = graph->context, copy->from = graph->from, copy->to = graph->to;
    std::map<Node *, Node *> twins;
    for (Node *node : graph->nodes) {
        Node *twin = twins[node] = new Node(*node);
        twin->graph = copy;
        for (Node *&before : twin->after) before = twins[before];
        if (twin->child) twin->child = copied(twin->child);
        for (Graph *&body : twin->bodies) body = copied(body);
        copy->nodes.push_back(twin);
    }
    return copy;
}
// A new node in a graph after others; null if one of them is not of this graph, or comes twice.
static Node *added(Graph *graph, Node *const *after, size_t count, int kind) {
    if (!known(graph) || (count && !after)) return nullptr;
    std::set<Node *> distinct(after, after + count);
    if (distinct.size() != count) return nullptr;
    for (Node *before : distinct) if (!nodes.count(before) || before->graph != graph) return nullptr;
    Node *node = new Node;
    node->kind = kind, node->graph = graph, node->after.assign(after, after + count);
    nodes.insert(node);
    graph->nodes.push_back(node);
    return node;
}
static std::string place(Node *node) {
    auto &all = node->graph->nodes;
    return text(node->graph->number) + "." + text(std::find(all.begin(), all.end(), node) - all.begin());
}
static void note_added(Node *node, const std::string &what) {
    std::string after;
    for (Node *before : node->after) after += " " + place(before);
    note("add " + place(node) + " " + what + " after" + (after.empty() ? " nothing" : after));
}
static bool may_be_child(Graph *graph) {
    for (Node *node : graph->nodes) {
        if (node->kind == ALLOCATE || node->kind == FREE || node->kind == CONDITIONAL) return false;
        if (node->child && !may_be_child(node->child)) return false;
    }
    return true;
}
static bool may_be_body(Graph *graph, void *expected) {
    if (graph->context && graph->context != expected) return false;
    for (Node *node : graph->nodes) {
        bool allowed = node->kind <= MEMSET || node->kind == CHILD || node->kind == EMPTY || node->kind == CONDITIONAL;
        if (!allowed || (node->child && !may_be_body(node->child, expected))) return false;
        if (node->function && functions[node->function] != expected) return false;
    }
    return true;
}
static Status run(Graph *graph, std::map<uint64_t, unsigned> &values) {
    if (!graph->name.empty()) runs += graph->name + "\n";
    if (graph->to) *graph->to = *graph->from;
    for (Node *node : graph->nodes) {
        Status status = OK;
        if (node->child) status = run(node->child, values);
        if (node->function && kernel_runs) {
            if (!values.count(node->arguments[0])) return ILLEGAL_ADDRESS;
            values[node->arguments[0]] = *reinterpret_cast<const bool *>(node->arguments[1]) ? 0 : 1;
        }
        if (node->kind == CONDITIONAL) {
            size_t chosen = values[node->handle] ? 0 : 1;
            if (chosen < node->bodies.size()) status = run(node->bodies[chosen], values);
        }
        if (status) return status;
    }
    return OK;
}
