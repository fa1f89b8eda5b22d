// A stand-in for libcuda.so.1: it keeps a model of the graphs that it is told to build, and a launch interprets them.
//
// "Device" memory is the host's. It refuses what the driver refuses, with the driver's numbers of errors, and knows
// just the functions that the package calls. Layouts are those of the driver API 12.8 and later; see `fake_layout`.
#include "model.h"

extern "C" {
Status cuInit(unsigned) { return OK; }
Status cuDriverGetVersion(int *out) { return *out = version, fails("cuDriverGetVersion"); }
Status cuGetErrorName(Status status, const char **out) {
    return *out = status ? "CUDA_ERROR" : "CUDA_SUCCESS", OK;
}
Status cuCtxGetCurrent(void **out) { return *out = context, OK; }
Status cuModuleLoadData(void **out, const void *image) {
    if (!context) return INVALID_CONTEXT;
    if (std::memcmp(image, "\177ELF", 4)) return INVALID_IMAGE;
    note("load " + std::string(static_cast<const char *>(image) + 4));
    modules[*out = new char] = context;
    return OK;
}
Status cuModuleGetFunction(void **out, void *module, const char *name) {
    if (!modules.count(module)) return INVALID_VALUE;
    if (std::strcmp(name, "dicache_choose")) return NOT_FOUND;
    functions[*out = new char] = modules[module];
    return OK;
}
Status cuGraphCreate(Graph **out, unsigned flags) {
    if (flags) return INVALID_VALUE;
    *out = new_graph(true, true);
    note("create " + text((*out)->number));
    return OK;
}
Status cuGraphDestroy(Graph *graph) {
    if (!known(graph) || !graph->owned) return note("destroy what is no graph"), INVALID_VALUE;
    graph->alive = false;
    for (Node *node : graph->nodes) {
        nodes.erase(node);
        for (Graph *body : node->bodies) body->alive = false;
    }
    note("destroy " + text(graph->number));
    return OK;
}
Status cuGraphGetNodes(Graph *graph, Node **out, size_t *count) {
    if (!known(graph) || !count) return INVALID_VALUE;
    for (size_t i = 0; out && i < *count; i++) out[i] = i < graph->nodes.size() ? graph->nodes[i] : nullptr;
    *count = out ? std::min(*count, graph->nodes.size()) : graph->nodes.size();
    return OK;
}
Status cuGraphNodeGetType(Node *node, int *out) {
    return nodes.count(node) ? (*out = node->kind, OK) : INVALID_VALUE;
}
Status cuGraphAddChildGraphNode(Node **out, Graph *graph, Node *const *after, size_t count, Graph *child) {
    if (Status status = fails("cuGraphAddChildGraphNode")) return status;
    if (!known(child) || child == graph || !may_be_child(child)) return INVALID_VALUE;
    if (!(*out = added(graph, after, count, CHILD))) return INVALID_VALUE;
    (*out)->child = copied(child);
    note_added(*out, child->name);
    return OK;
}
Status cuGraphAddKernelNode_v2(Node **out, Graph *graph, Node *const *after, size_t count, const KernelParams *call) {
    bool sized = std::count(call->grid, call->grid + 3, 0u) == 0 && std::count(call->block, call->block + 3, 0u) == 0;
    if (!functions.count(call->func) || call->kern || !sized || !call->values || call->extra) return INVALID_VALUE;
    if (!(*out = added(graph, after, count, KERNEL))) return INVALID_VALUE;
    (*out)->function = call->func;
    for (int i = 0; i < 2; i++) std::memcpy(&(*out)->arguments[i], call->values[i], 8);
    std::string size;
    for (unsigned one : {call->grid[0], call->grid[1], call->grid[2], call->block[0], call->block[1], call->block[2]})
        size += text(one);
    note_added(*out, "kernel " + size + " shared " + text(call->shared) + " of " + text((*out)->arguments[0]) + " " +
                         text((*out)->arguments[1]));
    return OK;
}
Status cuGraphConditionalHandleCreate(uint64_t *out, Graph *graph, void *where, unsigned value, unsigned flags) {
    if (!known(graph) || flags > 1) return INVALID_VALUE;
    if (!where) return INVALID_CONTEXT;
    *out = 0xABCDEF0000000001ull + (handles.size() << 33);
    handles[*out] = Handle{graph, where, value, flags, false};
    note("handle " + text(*out) + " default " + text(value) + " flags " + text(flags));
    return OK;
}
Status cuGraphAddNode_v2(Node **out, Graph *graph, Node *const *after, const EdgeData *, size_t count, NodeParams *of) {
    size_t used = sizeof(ConditionalParams) / 8;
    bool zero = !of->reserved0[0] && !of->reserved0[1] && !of->reserved0[2] && !of->reserved2 &&
                std::count(of->words + used, of->words + 29, 0) == std::ptrdiff_t(29 - used);
    auto &wanted = of->conditional;
    auto handle = handles.find(wanted.handle);
    if (of->type != CONDITIONAL || !zero) return INVALID_VALUE;
    if (handle == handles.end() || handle->second.graph != graph) return INVALID_VALUE;
    if (handle->second.used || wanted.type != 0 || wanted.size < 1 || wanted.size > 2) return INVALID_VALUE;
    if (wanted.size == 2 && version < 12080) return INVALID_VALUE;
    if (wanted.context != handle->second.context) return INVALID_CONTEXT;
    if (!(*out = added(graph, after, count, CONDITIONAL))) return INVALID_VALUE;
    handle->second.used = true, (*out)->handle = wanted.handle;
    for (unsigned i = 0; i < wanted.size; i++) (*out)->bodies.push_back(new_graph(false, true));
    wanted.bodies = reinterpret_cast<void **>((*out)->bodies.data());
    note_added(*out, "if " + text((*out)->bodies[0]->number) + " else " + text((*out)->bodies.back()->number));
    return OK;
}
Status cuGraphInstantiateWithFlags(Executable **out, Graph *graph, unsigned long long flags) {
    if (Status status = fails("cuGraphInstantiateWithFlags")) return status;
    if (!known(graph) || flags) return INVALID_VALUE;
    for (auto &[_, handle] : handles) if (handle.graph == graph && !handle.used) return INVALID_VALUE;
    for (Node *node : graph->nodes)
        for (Graph *body : node->bodies)
            if (!may_be_body(body, handles.at(node->handle).context)) return NOT_SUPPORTED;
    executables.insert(*out = new Executable{copied(graph)});
    note("instantiate " + text(graph->number));
    return OK;
}
Status cuGraphLaunch(Executable *executable, void *stream) {
    if (Status status = fails("cuGraphLaunch")) return status;
    if (!executables.count(executable) || !executable->alive) return INVALID_VALUE;
    note("launch on " + text(reinterpret_cast<uintptr_t>(stream)));
    static std::map<uint64_t, unsigned> values;  // without the flag, a launch starts from what the last one left
    for (auto &[number, handle] : handles) if (handle.flags & 1) values[number] = handle.value;
    return run(executable->graph, values);
}
int capture_mode = 0;  // of the thread: 0 global, 2 relaxed
Status cuThreadExchangeStreamCaptureMode(int *mode) {
    std::swap(*mode, capture_mode);
    return OK;
}
Status cuGraphExecDestroy(Executable *executable) {
    if (capture_mode != 2) note("destroy with consequences for a capture of another thread");
    bool usable = executables.count(executable) && executable->alive;
    if (!usable) return note("destroy what is no executable"), INVALID_VALUE;
    executable->alive = false;
    note("destroy executable");
    return OK;
}

// What a caller that asks for these versions of the functions gets.
Status cuGetProcAddress_v2(const char *symbol, void **out, int wanted, uint64_t, int *) {
    static const struct { const char *name; int since; void *function; } table[] = {
#define AT(name, since) {#name, since, reinterpret_cast<void *>(name)}
        AT(cuInit, 2000), AT(cuDriverGetVersion, 2020), AT(cuGetErrorName, 6000), AT(cuCtxGetCurrent, 4000),
        AT(cuModuleLoadData, 2000), AT(cuModuleGetFunction, 2000), AT(cuGraphCreate, 10000), AT(cuGraphDestroy, 10000),
        AT(cuGraphGetNodes, 10000), AT(cuGraphNodeGetType, 10000), AT(cuGraphAddChildGraphNode, 10000),
        AT(cuGraphConditionalHandleCreate, 12030), AT(cuGraphInstantiateWithFlags, 11040), AT(cuGraphLaunch, 10000),
        AT(cuThreadExchangeStreamCaptureMode, 10010), AT(cuGraphExecDestroy, 10000), AT(cuGetProcAddress_v2, 12000),
        {"cuGraphAddKernelNode", 12000, reinterpret_cast<void *>(cuGraphAddKernelNode_v2)},
        {"cuGraphAddNode", 12030, reinterpret_cast<void *>(cuGraphAddNode_v2)}};
    *out = nullptr;
    for (auto &entry : table) if (!std::strcmp(entry.name, symbol) && wanted >= entry.since) *out = entry.function;
    return *out ? OK : NOT_FOUND;
}

// For the test.
void fake_version(int number) { version = number; }
void fake_context(void *current) { context = current; }
void fake_kernel_runs(bool whether) { kernel_runs = whether; }
void fake_fail(const char *function, Status status) { failing = function, failing_status = status; }
Graph *fake_graph(const char *name, const int *kinds, int count) {
    Graph *graph = new_graph(true);
    graph->name = name, graph->context = context;
    for (int i = 0; i < count; i++) added(graph, i ? &graph->nodes.back() : nullptr, i ? 1 : 0, kinds[i]);
    return graph;
}
void fake_nest(Graph *graph, Graph *child) { added(graph, nullptr, 0, CHILD)->child = copied(child); }
void fake_copies(Graph *graph, const uint8_t *from, uint8_t *to) { graph->from = from, graph->to = to; }
const char *fake_journal() { return journal.c_str(); }
const char *fake_runs() { return runs.c_str(); }
int fake_layout(int which) {
    const int sizes[] = {sizeof(KernelParams), sizeof(ConditionalParams), sizeof(NodeParams), sizeof(EdgeData)};
    return sizes[which];
}
}
