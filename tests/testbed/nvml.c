/* A stand-in for NVIDIA's management library, for tests on machines without a GPU.
 *
 * It answers what dasf-hpc, distributed and dask-cuda ask, as the documentation of NVML says. GPUs
 * are told to it in the environment:
 *   STAND_IN_GPUS       how many there are (1)
 *   STAND_IN_PCIE_MS    what one question for the PCIe throughput takes: NVML counts for 20 ms (20)
 *   STAND_IN_SHARED     1: the GPU has no memory of its own, as in a system on a chip
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };
#define MOST 64

typedef struct device { int index; } *device;
static struct device devices[MOST];

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}
static unsigned count(void) { return (unsigned)number("STAND_IN_GPUS", 1); }
static void uuid_of(int index, char *text, unsigned length) {
    snprintf(text, length, "GPU-%08d-0000-0000-0000-000000000000", index);
}

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == NOT_SUPPORTED ? "Not Supported" : "Error"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = count(); return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *d) {
    if (index >= count() || index >= MOST) return INVALID_ARGUMENT;
    devices[index].index = (int)index;
    *d = &devices[index];
    return SUCCESS;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, device *d) {
    char text[96];
    for (unsigned i = 0; i < count(); i++) {
        uuid_of((int)i, text, sizeof text);
        if (!strcmp(text, uuid)) return nvmlDeviceGetHandleByIndex_v2(i, d);
    }
    return NOT_FOUND;
}
int nvmlDeviceGetIndex(device d, unsigned *index) { *index = (unsigned)d->index; return SUCCESS; }
int nvmlDeviceGetUUID(device d, char *text, unsigned length) {
    uuid_of(d->index, text, length);
    return SUCCESS;
}
int nvmlDeviceGetName(device d, char *text, unsigned length) {
    (void)d;
    snprintf(text, length, "Stand-in GPU");
    return SUCCESS;
}
int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    snprintf(text, length, "999.1");
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(device d, unsigned long long *m) {
    (void)d;
    if (number("STAND_IN_SHARED", 0)) return NOT_SUPPORTED;
    m[0] = 80ULL << 30; /* total, free, used */
    m[1] = 79ULL << 30;
    m[2] = 1ULL << 30;
    return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(device d, unsigned *u) {
    (void)d;
    u[0] = 50; /* GPU, memory */
    u[1] = 25;
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(device d, unsigned *mw) { (void)d; *mw = 123456; return SUCCESS; }
int nvmlDeviceGetTemperature(device d, int sensor, unsigned *t) {
    (void)d; (void)sensor;
    *t = 42;
    return SUCCESS;
}
int nvmlDeviceGetClockInfo(device d, int kind, unsigned *mhz) {
    (void)d;
    *mhz = kind == 1 ? 1980 : 2619; /* SM, memory */
    return SUCCESS;
}
int nvmlDeviceGetPcieThroughput(device d, int counter, unsigned *kb) {
    (void)d;
    struct timespec wait = {0, number("STAND_IN_PCIE_MS", 20) * 1000000L};
    nanosleep(&wait, 0);
    *kb = counter ? 2000 : 1000; /* RX, TX */
    return SUCCESS;
}
typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    unsigned type;
    int code;
    unsigned long long value;
} field_value;
int nvmlDeviceGetFieldValues(device d, int n, field_value *v) {
    (void)d;
    for (int i = 0; i < n; i++) v[i].code = NOT_SUPPORTED;
    return SUCCESS;
}
int nvmlDeviceGetMigMode(device d, unsigned *current, unsigned *pending) {
    (void)d; (void)current; (void)pending;
    return NOT_SUPPORTED;
}
int nvmlDeviceIsMigDeviceHandle(device d, unsigned *is) { (void)d; *is = 0; return SUCCESS; }
int nvmlDeviceGetCpuAffinity(device d, unsigned n, unsigned long *set) {
    (void)d;
    for (unsigned i = 0; i < n; i++) set[i] = ~0UL;
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(device d, unsigned *n, void *infos) {
    (void)d; (void)infos;
    *n = 0;
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v2(device d, unsigned *n, void *infos) {
    return nvmlDeviceGetComputeRunningProcesses_v3(d, n, infos);
}
