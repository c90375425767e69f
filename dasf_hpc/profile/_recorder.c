/* What is called for every task of a worker: it stores records into a journal's blocks.
 *
 * The layout of a block, and why a record is stored first and then published, is told in journal.py
 * and drain.py; here is the one implementation of it. A processor that is not of the x86 family may
 * show stores in another order: what publishes is a store with release semantics.
 *
 * All is called with the GIL held, which is what keeps threads apart: between the look at a place
 * and the store into it nothing of Python runs. Only the stable ABI of Python 3.11 is used, so that
 * one binary serves 3.11 and all later ones.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>
#include <time.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "journals are little endian"
#endif

#define BLOCK 4096
#define HEADER 64
#define END_OFFSET 40
#define MOST_FIELDS 16
#define MOST_BYTES 128
/* A key that is text and not longer is stored as it is, unless it begins as those do that are not:
 * Journal.key is of the others. */
#define MOST_KEY 900
#define MADE_SHORT 1
/* Records of transitions: bits of a key's id relative to the block's, and of the time. */
#define KEY_SPAN 0xFFFFFF
#define KEY_BEFORE 0x7FFFFF
#define TIME_SPAN 0xFFFFFFFFLL

static int64_t
monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ------------------------------------------------------------------ the memory of a journal */

/* One stream's current block in one thread; `renew` is asked for the next one. */
typedef struct {
    Py_buffer memory;
    PyObject *renew;
    Py_ssize_t place; /* of the block; 0 where there is none */
    Py_ssize_t at;    /* where the next byte goes */
} Place;

static int
place_init(Place *place, PyObject *memory, PyObject *renew)
{
    if (PyObject_GetBuffer(memory, &place->memory, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    place->renew = Py_NewRef(renew);
    place->place = place->at = 0;
    return 0;
}

static void
place_clear(Place *place)
{
    place->place = place->at = 0; /* whoever still records finds no room, and nobody to ask for it */
    if (place->memory.obj != NULL) {
        PyBuffer_Release(&place->memory);
    }
    Py_CLEAR(place->renew);
}

/* Begin a block; 1 where there is one, 0 where the record is dropped, -1 with an exception. */
static int
place_renew(Place *place, int64_t base, int64_t second, int64_t third)
{
    place->place = place->at = 0;
    PyObject *given = PyObject_CallFunction(
        place->renew, "LLL", (long long)base, (long long)second, (long long)third);
    if (given == NULL) {
        return -1;
    }
    Py_ssize_t start = PyLong_AsSsize_t(given);
    Py_DECREF(given);
    if (start == -1 && PyErr_Occurred()) {
        return -1;
    }
    if (start == 0) {
        return 0;
    }
    if (start < 0 || start % BLOCK || start > place->memory.len - BLOCK) {
        PyErr_SetString(PyExc_ValueError, "no block of this journal");
        return -1;
    }
    place->place = start;
    place->at = start + HEADER;
    return 1;
}

static inline void
publish(Place *place, Py_ssize_t end)
{
    uint64_t *word = (uint64_t *)((char *)place->memory.buf + place->place + END_OFFSET);
    place->at = end;
    __atomic_store_n(word, (uint64_t)end, __ATOMIC_RELEASE);
}

/* What all that store into a journal begin with. */
typedef struct {
    PyObject_HEAD
    Place place;
} Writer;

static int
writer_traverse(Writer *self, visitproc visit, void *arg)
{
    Py_VISIT((PyObject *)Py_TYPE((PyObject *)self));
    Py_VISIT(self->place.renew);
    return 0;
}

static int
writer_clear(Writer *self)
{
    place_clear(&self->place);
    return 0;
}

static void
release(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static void
writer_dealloc(Writer *self)
{
    PyObject_GC_UnTrack(self);
    writer_clear(self);
    release((PyObject *)self);
}

static inline Py_ssize_t
room(const Place *place)
{
    return place->place ? place->place + BLOCK - place->at : 0;
}

/* ------------------------------------------------------------------ records of any stream */

typedef struct {
    PyObject_HEAD
    Place place;
    int64_t base;
    int fields;
    int timed; /* the first field is a time, kept as ns since the block's base */
    Py_ssize_t size;
    char codes[MOST_FIELDS + 1];
} Recorder;

static const Py_ssize_t SIZES[128] = {['I'] = 4, ['H'] = 2, ['Q'] = 8, ['q'] = 8, ['f'] = 4};

static PyObject *
recorder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *memory, *renew;
    const char *codes;
    int timed;
    if (!PyArg_ParseTuple(args, "OspO", &memory, &codes, &timed, &renew)) {
        return NULL;
    }
    size_t count = strlen(codes);
    Py_ssize_t size = 0;
    for (size_t n = 0; n < count; n++) {
        size += SIZES[codes[n] & 127];
        if (SIZES[codes[n] & 127] == 0) {
            size = MOST_BYTES + 1;
        }
    }
    if (count == 0 || count > MOST_FIELDS || size > MOST_BYTES || (timed && codes[0] != 'I')) {
        PyErr_Format(PyExc_ValueError, "no record has the fields '%s'", codes);
        return NULL;
    }
    Recorder *self = (Recorder *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->fields = (int)count;
    self->timed = timed;
    self->size = size;
    memcpy(self->codes, codes, count + 1);
    if (place_init(&self->place, memory, renew) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* Store a packed record; of a timed one the first four bytes are set here. */
static int
recorder_put(Recorder *self, char *packed, int64_t time)
{
    int64_t since = time - self->base;
    if (room(&self->place) < self->size || (self->timed && (since < 0 || since > TIME_SPAN))) {
        self->base = self->timed ? time : monotonic_ns();
        int given = place_renew(&self->place, self->base, 0, -1);
        if (given <= 0) {
            return given;
        }
        since = 0;
    }
    if (self->timed) {
        uint32_t first = (uint32_t)since;
        memcpy(packed, &first, 4);
    }
    memcpy((char *)self->place.memory.buf + self->place.at, packed, self->size);
    publish(&self->place, self->place.at + self->size);
    return 0;
}

/* Pack a field; what is no number of its range is refused, as by the module struct. */
static int
pack(char *target, char code, PyObject *value)
{
    if (code == 'f') {
        double number = PyFloat_AsDouble(value);
        if (number == -1.0 && PyErr_Occurred()) {
            return -1;
        }
        float single = (float)number;
        if (single - single != 0 && number - number == 0) {
            PyErr_SetString(PyExc_OverflowError, "a number is too large for its field");
            return -1;
        }
        memcpy(target, &single, 4);
        return 0;
    }
    PyObject *index = PyNumber_Index(value);
    if (index == NULL) {
        return -1;
    }
    if (code == 'q') {
        int64_t number = PyLong_AsLongLong(index);
        Py_DECREF(index);
        if (number == -1 && PyErr_Occurred()) {
            return -1;
        }
        memcpy(target, &number, 8);
        return 0;
    }
    uint64_t number = PyLong_AsUnsignedLongLong(index);
    Py_DECREF(index);
    if (number == (uint64_t)-1 && PyErr_Occurred()) {
        return -1;
    }
    Py_ssize_t size = SIZES[code & 127];
    if (size < 8 && number >> (8 * size)) {
        PyErr_SetString(PyExc_OverflowError, "a number is too large for its field");
        return -1;
    }
    memcpy(target, &number, size);
    return 0;
}

static PyObject *
recorder_record(Recorder *self, PyObject *const *values, Py_ssize_t count)
{
    char packed[MOST_BYTES];
    Py_ssize_t offset = 0;
    int64_t time = 0;
    if (count != self->fields) {
        return PyErr_Format(
            PyExc_TypeError, "a record has %d fields, not %zd", self->fields, count);
    }
    for (int n = 0; n < count; n++) {
        if (n == 0 && self->timed) {
            char word[8];
            if (pack(word, 'q', values[0]) < 0) {
                return NULL;
            }
            memcpy(&time, word, 8);
        }
        else if (pack(packed + offset, self->codes[n], values[n]) < 0) {
            return NULL;
        }
        offset += SIZES[self->codes[n] & 127];
    }
    if (recorder_put(self, packed, time) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef recorder_methods[] = {
    {"record", (PyCFunction)(void (*)(void))recorder_record, METH_FASTCALL,
     "Store one record: its fields in their order, a time first in ns of CLOCK_MONOTONIC."},
    {NULL}};

static PyType_Slot recorder_slots[] = {
    {Py_tp_doc, "Recorder(memory, codes, timed, renew): records of one stream, of one thread."},
    {Py_tp_new, recorder_new},
    {Py_tp_dealloc, writer_dealloc},
    {Py_tp_traverse, writer_traverse},
    {Py_tp_clear, writer_clear},
    {Py_tp_methods, recorder_methods},
    {0}};

static PyType_Spec recorder_spec = {
    "dasf_hpc.profile._recorder.Recorder", sizeof(Recorder), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, recorder_slots};

/* ------------------------------------------------------------------ text */

typedef struct {
    PyObject_HEAD
    Place place;
    uint32_t count;
    int renewing;
    Py_ssize_t most; /* bytes of a text, without its end */
} Texts;

static PyObject *
texts_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *memory, *renew;
    if (!PyArg_ParseTuple(args, "OO", &memory, &renew)) {
        return NULL;
    }
    Texts *self = (Texts *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->most = BLOCK - HEADER - 1;
    if (place_init(&self->place, memory, renew) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* Store a text without NUL and give its id, -1 with an exception.
 *
 * The ids must stay in step with what is on file: a text that is not stored takes its id with it,
 * and the reader shows what refers to it as unknown. Another thread may run only while a block is
 * begun; whoever comes meanwhile waits for it. */
static int64_t
texts_put(Texts *self, const char *text, Py_ssize_t length)
{
    while (self->renewing) {
        Py_BEGIN_ALLOW_THREADS
        struct timespec moment = {0, 10000};
        nanosleep(&moment, NULL);
        Py_END_ALLOW_THREADS
    }
    uint32_t number = self->count++;
    if (room(&self->place) <= length) {
        self->renewing = 1;
        int given = place_renew(&self->place, monotonic_ns(), 0, number);
        self->renewing = 0;
        if (given <= 0) {
            return given < 0 ? -1 : (int64_t)number;
        }
    }
    char *target = (char *)self->place.memory.buf + self->place.at;
    memcpy(target, text, length);
    target[length] = 0;
    publish(&self->place, self->place.at + length + 1);
    return number;
}

/* A text with what a journal cannot hold as it is: NULs, halves of surrogate pairs, too much. */
static int64_t
texts_put_other(Texts *self, PyObject *text)
{
    PyObject *raw = PyUnicode_AsEncodedString(text, "utf-8", "surrogatepass");
    if (raw == NULL) {
        return -1;
    }
    char *bytes;
    Py_ssize_t length, at = 0;
    char kept[BLOCK];
    if (PyBytes_AsStringAndSize(raw, &bytes, &length) < 0) {
        Py_DECREF(raw);
        return -1;
    }
    for (Py_ssize_t n = 0; n < length && at < self->most; n++) {
        if (bytes[n] == 0) {
            kept[at++] = '\xc0';
            if (at < self->most) {
                kept[at++] = '\x80';
            }
        }
        else {
            kept[at++] = bytes[n];
        }
    }
    Py_DECREF(raw);
    return texts_put(self, kept, at);
}

static int64_t
texts_put_object(Texts *self, PyObject *text)
{
    Py_ssize_t length;
    const char *bytes = PyUnicode_AsUTF8AndSize(text, &length);
    if (bytes == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) {
            return -1;
        }
        PyErr_Clear();
        return texts_put_other(self, text);
    }
    if (length >= self->most || memchr(bytes, 0, length) != NULL) {
        return texts_put_other(self, text);
    }
    return texts_put(self, bytes, length);
}

static PyObject *
texts_append(Texts *self, PyObject *text)
{
    int64_t number = texts_put_object(self, text);
    return number < 0 ? NULL : PyLong_FromLongLong(number);
}

static PyMethodDef texts_methods[] = {
    {"append", (PyCFunction)texts_append, METH_O,
     "Store a text, from any thread, and give its id: its position in the stream."},
    {NULL}};

static PyType_Slot texts_slots[] = {
    {Py_tp_doc, "Texts(memory, renew): the texts of one stream, of all threads."},
    {Py_tp_new, texts_new},
    {Py_tp_dealloc, writer_dealloc},
    {Py_tp_traverse, writer_traverse},
    {Py_tp_clear, writer_clear},
    {Py_tp_methods, texts_methods},
    {0}};

static PyType_Spec texts_spec = {
    "dasf_hpc.profile._recorder.Texts", sizeof(Texts), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, texts_slots};

/* ------------------------------------------------------------------ transitions */

typedef struct {
    PyObject_HEAD
    Place place;
    int64_t base;
    int64_t base_key;
} Transitions;

static PyObject *
transitions_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *memory, *renew;
    if (!PyArg_ParseTuple(args, "OO", &memory, &renew)) {
        return NULL;
    }
    Transitions *self =
        (Transitions *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL) {
        return NULL;
    }
    if (place_init(&self->place, memory, renew) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* Store a transition: one word that publishes itself, and is never 0, its time being later than its
 * block's. */
static int
transitions_put(Transitions *self, int64_t time, int64_t key, int states)
{
    int64_t since = time - self->base, relative = key - self->base_key;
    if (room(&self->place) < 8 || since < 1 || since > TIME_SPAN || relative < 0 ||
        relative > KEY_SPAN) {
        self->base = time - 1;
        self->base_key = key > KEY_BEFORE ? key - KEY_BEFORE : 0;
        int given = place_renew(&self->place, self->base, self->base_key, -1);
        if (given <= 0) {
            return given;
        }
        since = 1;
        relative = key - self->base_key;
    }
    uint64_t word = (uint64_t)since | (uint64_t)relative << 40 | (uint64_t)states << 32;
    uint64_t *target = (uint64_t *)((char *)self->place.memory.buf + self->place.at);
    __atomic_store_n(target, word, __ATOMIC_RELEASE);
    self->place.at += 8;
    return 0;
}

static PyObject *
transitions_record(Transitions *self, PyObject *const *values, Py_ssize_t count)
{
    if (count != 3) {
        return PyErr_Format(PyExc_TypeError, "a transition has 3 fields, not %zd", count);
    }
    int64_t time = PyLong_AsLongLong(values[0]);
    int64_t key = PyLong_AsLongLong(values[1]);
    int64_t states = PyLong_AsLongLong(values[2]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (key < 0 || key > 0xFFFFFFFFLL || states < 0 || states > 255) {
        PyErr_SetString(PyExc_OverflowError, "a number is too large for its field");
        return NULL;
    }
    if (transitions_put(self, time, key, (int)states) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef transitions_methods[] = {
    {"record", (PyCFunction)(void (*)(void))transitions_record, METH_FASTCALL,
     "Store one transition: its time in ns, its key's id, its states (start << 4 | finish)."},
    {NULL}};

static PyType_Slot transitions_slots[] = {
    {Py_tp_doc, "Transitions(memory, renew): the transitions that one thread records."},
    {Py_tp_new, transitions_new},
    {Py_tp_dealloc, writer_dealloc},
    {Py_tp_traverse, writer_traverse},
    {Py_tp_clear, writer_clear},
    {Py_tp_methods, transitions_methods},
    {0}};

static PyType_Spec transitions_spec = {
    "dasf_hpc.profile._recorder.Transitions", sizeof(Transitions), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, transitions_slots};

/* ------------------------------------------------------------------ the log of a worker's states */

/* What a step asks for besides its transition; the numbers are those of listener.py. */
enum { NOTHING, EXECUTING, EXECUTED, FORGOTTEN, OTHER };

typedef struct {
    PyObject_HEAD
    PyObject *append;     /* of the log itself */
    PyObject *steps;      /* start -> finish -> kind << 8 | states */
    PyObject *tasks;      /* key -> task, Dask's own */
    PyObject *ids;        /* key -> id */
    PyObject *seen;       /* ids of keys whose execution was seen in a thread */
    PyObject *activities; /* key -> number of activities recorded */
    PyObject *define;     /* gives a new key's id */
    PyObject *other;      /* is told of what is rare: key, id, time, start, finish */
    PyObject *failed;     /* is called in an exception's place */
    Transitions *transitions;
    Recorder *edges;
    Texts *keys;
    PyObject *dependencies, *key, *startstops; /* names of attributes */
} Listener;

static int
listener_clear(Listener *self)
{
    Py_CLEAR(self->append);
    Py_CLEAR(self->steps);
    Py_CLEAR(self->tasks);
    Py_CLEAR(self->ids);
    Py_CLEAR(self->seen);
    Py_CLEAR(self->activities);
    Py_CLEAR(self->define);
    Py_CLEAR(self->other);
    Py_CLEAR(self->failed);
    Py_CLEAR(self->transitions);
    Py_CLEAR(self->edges);
    Py_CLEAR(self->keys);
    Py_CLEAR(self->dependencies);
    Py_CLEAR(self->key);
    Py_CLEAR(self->startstops);
    return 0;
}

static int
listener_traverse(Listener *self, visitproc visit, void *arg)
{
    Py_VISIT((PyObject *)Py_TYPE((PyObject *)self));
    Py_VISIT(self->append);
    Py_VISIT(self->steps);
    Py_VISIT(self->tasks);
    Py_VISIT(self->ids);
    Py_VISIT(self->seen);
    Py_VISIT(self->activities);
    Py_VISIT(self->define);
    Py_VISIT(self->other);
    Py_VISIT(self->failed);
    Py_VISIT(self->transitions);
    Py_VISIT(self->edges);
    Py_VISIT(self->keys);
    return 0;
}

static void
listener_dealloc(Listener *self)
{
    PyObject_GC_UnTrack(self);
    listener_clear(self);
    release((PyObject *)self);
}

/* Store a key that is new; gives its id as an object. */
static PyObject *
define(Listener *self, PyObject *key)
{
    if (PyUnicode_CheckExact(key) && PyUnicode_GetLength(key) <= MOST_KEY &&
        (PyUnicode_GetLength(key) == 0 || PyUnicode_ReadChar(key, 0) != MADE_SHORT)) {
        int64_t number = texts_put_object(self->keys, key);
        return number < 0 ? NULL : PyLong_FromLongLong(number);
    }
    return PyObject_CallFunctionObjArgs(self->define, key, NULL);
}

/* Give a key's id and, borrowed, the object that it is; -1 with an exception. */
static int64_t
id_of(Listener *self, PyObject *key, PyObject **object)
{
    PyObject *number = PyDict_GetItemWithError(self->ids, key);
    if (number == NULL) {
        if (PyErr_Occurred()) {
            return -1;
        }
        number = define(self, key);
        if (number == NULL) {
            return -1;
        }
        int kept = PyDict_SetItem(self->ids, key, number);
        Py_DECREF(number); /* the dictionary has it */
        if (kept < 0) {
            return -1;
        }
    }
    *object = number;
    return PyLong_AsLongLong(number);
}

/* Call what is told of the rare. */
static int
tell(Listener *self, PyObject *key, PyObject *number, int64_t now, PyObject *start, PyObject *finish)
{
    PyObject *done =
        PyObject_CallFunction(self->other, "OOLOO", key, number, (long long)now, start, finish);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

static PyObject *
task_of(Listener *self, PyObject *key)
{
    PyObject *task = PyDict_GetItemWithError(self->tasks, key);
    if (task == NULL && !PyErr_Occurred()) {
        PyErr_SetString(PyExc_KeyError, "a task that is not there");
    }
    return task;
}

static int
on_executing(Listener *self, PyObject *key, uint32_t number)
{
    PyObject *task = task_of(self, key);
    if (task == NULL) {
        return -1;
    }
    PyObject *needed = PyObject_GetAttr(task, self->dependencies);
    if (needed == NULL) {
        return -1;
    }
    if (PyObject_Size(needed) <= 0) {
        Py_DECREF(needed);
        return PyErr_Occurred() ? -1 : 0;
    }
    PyObject *all = PyObject_GetIter(needed), *one;
    Py_DECREF(needed);
    if (all == NULL) {
        return -1;
    }
    while ((one = PyIter_Next(all)) != NULL) {
        PyObject *name = PyObject_GetAttr(one, self->key), *object;
        Py_DECREF(one);
        if (name == NULL) {
            break;
        }
        int64_t dependency = id_of(self, name, &object);
        Py_DECREF(name);
        if (dependency == -1 && PyErr_Occurred()) {
            break;
        }
        uint32_t pair[2] = {number, (uint32_t)dependency};
        if (recorder_put(self->edges, (char *)pair, 0) < 0) {
            break;
        }
    }
    Py_DECREF(all);
    return PyErr_Occurred() ? -1 : 0;
}

/* 1 where the rest is to be told, being rare: more activities than one, no thread of ours. */
static int
on_executed(Listener *self, PyObject *key, PyObject *number)
{
    PyObject *task = task_of(self, key);
    if (task == NULL) {
        return -1;
    }
    PyObject *activities = PyObject_GetAttr(task, self->startstops);
    if (activities == NULL) {
        return -1;
    }
    Py_ssize_t count = PyObject_Size(activities);
    Py_DECREF(activities);
    if (count < 0) {
        return -1;
    }
    if (count > 1) {
        return 1;
    }
    int found = PySet_Discard(self->seen, number);
    return found < 0 ? -1 : !found;
}

static int
on_forgotten(Listener *self, PyObject *key, PyObject *number)
{
    if (PyDict_DelItem(self->ids, key) < 0 || PySet_Discard(self->seen, number) < 0) {
        return -1;
    }
    if (PyDict_Size(self->activities) > 0) {
        int there = PyDict_Contains(self->activities, key);
        if (there < 0 || (there && PyDict_DelItem(self->activities, key) < 0)) {
            return -1;
        }
    }
    return 0;
}

static int
listener_hear(Listener *self, PyObject *entry)
{
    if (!PyTuple_Check(entry) || PyTuple_Size(entry) != 7) {
        return 0;
    }
    PyObject *start = PyTuple_GetItem(entry, 1), *finish = PyTuple_GetItem(entry, 2);
    if (!PyUnicode_Check(start) || !PyUnicode_Check(finish)) {
        return 0;
    }
    PyObject *from = PyDict_GetItemWithError(self->steps, start);
    PyObject *step = from == NULL ? NULL : PyDict_GetItemWithError(from, finish);
    if (step == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    int64_t now = monotonic_ns();
    long what = PyLong_AsLong(step);
    PyObject *key = PyTuple_GetItem(entry, 0), *object;
    int64_t number = id_of(self, key, &object);
    if (number == -1 && PyErr_Occurred()) {
        return -1;
    }
    Py_INCREF(object);
    int done = transitions_put(self->transitions, now, number, (int)(what & 255));
    if (done == 0) {
        switch (what >> 8) {
        case NOTHING:
            break;
        case EXECUTING:
            done = on_executing(self, key, (uint32_t)number);
            break;
        case FORGOTTEN:
            done = on_forgotten(self, key, object);
            break;
        case EXECUTED:
            done = on_executed(self, key, object);
            if (done <= 0) {
                break;
            }
            /* fall through */
        default:
            done = tell(self, key, object, now, start, finish);
        }
    }
    Py_DECREF(object);
    return done;
}

static PyObject *
listener_append(Listener *self, PyObject *entry)
{
    PyObject *done = PyObject_CallFunctionObjArgs(self->append, entry, NULL);
    if (done != NULL && listener_hear(self, entry) < 0) {
        if (!PyErr_ExceptionMatches(PyExc_Exception)) {
            Py_DECREF(done);
            return NULL;
        }
        PyErr_Clear();
        PyObject *said = PyObject_CallFunctionObjArgs(self->failed, NULL);
        if (said == NULL) {
            PyErr_Clear();
        }
        Py_XDECREF(said);
    }
    return done;
}

static PyMethodDef listener_methods[] = {
    {"append", (PyCFunction)listener_append, METH_O,
     "Put an entry into the log, and record it where it is a transition. Never raises of itself."},
    {NULL}};

static PyType_Slot listener_slots[] = {
    {Py_tp_doc, "Listener: records the transitions that are put into a worker state's log."},
    {Py_tp_dealloc, listener_dealloc},
    {Py_tp_traverse, listener_traverse},
    {Py_tp_clear, listener_clear},
    {Py_tp_methods, listener_methods},
    {0}};

static PyType_Spec listener_spec = {
    "dasf_hpc.profile._recorder.Listener", sizeof(Listener), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, listener_slots};

/* ------------------------------------------------------------------ executions in a thread */

typedef struct {
    PyObject_HEAD
    Recorder *starts, *stops;
    PyObject *ids;     /* key -> id */
    PyObject *seen;    /* as above */
    PyObject *results; /* type -> id of the text that describes its values */
    PyObject *unknown; /* gives the id of a key that is in no dictionary */
    PyObject *ended;   /* gives (text id, status, bytes) of an end that is not as all are */
    PyObject *lease;   /* is let go when the thread ends */
    PyObject *finished, *op, *result, *nbytes;
    uint32_t thread;
} Thread;

static int
thread_clear(Thread *self)
{
    Py_CLEAR(self->starts);
    Py_CLEAR(self->stops);
    Py_CLEAR(self->ids);
    Py_CLEAR(self->seen);
    Py_CLEAR(self->results);
    Py_CLEAR(self->unknown);
    Py_CLEAR(self->ended);
    Py_CLEAR(self->lease);
    Py_CLEAR(self->finished);
    Py_CLEAR(self->op);
    Py_CLEAR(self->result);
    Py_CLEAR(self->nbytes);
    return 0;
}

static int
thread_traverse(Thread *self, visitproc visit, void *arg)
{
    Py_VISIT((PyObject *)Py_TYPE((PyObject *)self));
    Py_VISIT(self->starts);
    Py_VISIT(self->stops);
    Py_VISIT(self->ids);
    Py_VISIT(self->seen);
    Py_VISIT(self->results);
    Py_VISIT(self->unknown);
    Py_VISIT(self->ended);
    Py_VISIT(self->lease);
    return 0;
}

static void
thread_dealloc(Thread *self)
{
    PyObject_GC_UnTrack(self);
    thread_clear(self);
    release((PyObject *)self);
}

static PyObject *
thread_started(Thread *self, PyObject *const *values, Py_ssize_t count)
{
    if (count != 3) {
        return PyErr_Format(PyExc_TypeError, "a start has 3 fields, not %zd", count);
    }
    int64_t at = PyLong_AsLongLong(values[2]);
    if (at == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (at == 0) {
        at = monotonic_ns();
    }
    PyObject *object = PyDict_GetItemWithError(self->ids, values[1]);
    if (object != NULL) {
        Py_INCREF(object);
        if (PySet_Add(self->seen, object) < 0) {
            Py_DECREF(object);
            return NULL;
        }
    }
    else {
        if (PyErr_Occurred()) {
            return NULL;
        }
        object = PyObject_CallFunctionObjArgs(self->unknown, values[1], NULL);
        if (object == NULL) {
            return NULL;
        }
    }
    char packed[16];
    uint32_t thread = self->thread;
    int done = pack(packed + 4, 'I', values[0]) | pack(packed + 8, 'I', object);
    Py_DECREF(object);
    memcpy(packed + 12, &thread, 4);
    if (done < 0 || recorder_put(self->starts, packed, at) < 0) {
        return NULL;
    }
    return PyLong_FromLongLong(at);
}

/* Fill in text, status and bytes of an end as nearly all are; 0 where it is another. */
static int
plain_end(Thread *self, PyObject *message, char *packed)
{
    if (!PyDict_Check(message)) {
        return 0;
    }
    PyObject *op = PyDict_GetItemWithError(message, self->op);
    if (op == NULL || !PyUnicode_Check(op) || PyUnicode_Compare(op, self->finished) != 0) {
        return 0;
    }
    PyObject *value = PyDict_GetItemWithError(message, self->result);
    PyObject *nbytes = PyDict_GetItemWithError(message, self->nbytes);
    if (value == NULL || nbytes == NULL || !PyLong_CheckExact(nbytes)) {
        return 0;
    }
    int64_t bytes = PyLong_AsLongLong(nbytes);
    if (bytes < 0) { /* no number of bytes, or too many */
        return 0;
    }
    PyObject *kind = (PyObject *)Py_TYPE(value);
    PyObject *text = PyDict_GetItemWithError(self->results, kind);
    if (text == NULL || pack(packed + 8, 'I', text) < 0) {
        return 0;
    }
    memset(packed + 12, 0, 4);
    memcpy(packed + 16, &bytes, 8);
    return 1;
}

static PyObject *
thread_stopped(Thread *self, PyObject *const *values, Py_ssize_t count)
{
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "a stop has 2 fields, not %zd", count);
    }
    int64_t now = monotonic_ns();
    char packed[24];
    if (!plain_end(self, values[1], packed)) {
        PyErr_Clear(); /* a class may have a metaclass that cannot be looked up */
        PyObject *told = PyObject_CallFunctionObjArgs(self->ended, values[1], NULL);
        if (told == NULL) {
            return NULL;
        }
        int done = -1;
        if (PyTuple_Check(told) && PyTuple_Size(told) == 3) {
            done = pack(packed + 8, 'I', PyTuple_GetItem(told, 0)) |
                   pack(packed + 12, 'I', PyTuple_GetItem(told, 1)) |
                   pack(packed + 16, 'Q', PyTuple_GetItem(told, 2));
        }
        else {
            PyErr_SetString(PyExc_TypeError, "an end is a text's id, a status and bytes");
        }
        Py_DECREF(told);
        if (done < 0) {
            return NULL;
        }
    }
    if (pack(packed + 4, 'I', values[0]) < 0 || recorder_put(self->stops, packed, now) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef thread_methods[] = {
    {"started", (PyCFunction)(void (*)(void))thread_started, METH_FASTCALL,
     "Record a start: number, key, time or 0; gives the time."},
    {"stopped", (PyCFunction)(void (*)(void))thread_stopped, METH_FASTCALL,
     "Record a stop: number, Dask's message or None."},
    {NULL}};

static PyType_Slot thread_slots[] = {
    {Py_tp_doc, "Thread: records the executions of one thread."},
    {Py_tp_dealloc, thread_dealloc},
    {Py_tp_traverse, thread_traverse},
    {Py_tp_clear, thread_clear},
    {Py_tp_methods, thread_methods},
    {0}};

static PyType_Spec thread_spec = {
    "dasf_hpc.profile._recorder.Thread", sizeof(Thread), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, thread_slots};

/* ------------------------------------------------------------------ NVTX ranges in a thread */

typedef struct {
    PyObject_HEAD
    PyObject *tasks; /* key -> task, Dask's own */
    PyObject *known; /* prefix -> attributes of a range, this thread's own */
    PyObject *make;  /* gives the attributes for a key whose prefix is not known */
    PyObject *push, *pop;
    PyObject *prefix, *payload; /* names of attributes */
    int64_t base;
} Ranges;

static int
ranges_clear(Ranges *self)
{
    Py_CLEAR(self->tasks);
    Py_CLEAR(self->known);
    Py_CLEAR(self->make);
    Py_CLEAR(self->push);
    Py_CLEAR(self->pop);
    Py_CLEAR(self->prefix);
    Py_CLEAR(self->payload);
    return 0;
}

static int
ranges_traverse(Ranges *self, visitproc visit, void *arg)
{
    Py_VISIT((PyObject *)Py_TYPE((PyObject *)self));
    Py_VISIT(self->tasks);
    Py_VISIT(self->known);
    Py_VISIT(self->make);
    Py_VISIT(self->push);
    Py_VISIT(self->pop);
    return 0;
}

static void
ranges_dealloc(Ranges *self)
{
    PyObject_GC_UnTrack(self);
    ranges_clear(self);
    release((PyObject *)self);
}

/* Give the attributes of a task's range, a new reference. */
static PyObject *
attributes_of(Ranges *self, PyObject *key)
{
    PyObject *task = PyDict_GetItemWithError(self->tasks, key), *found = NULL;
    if (task == NULL && PyErr_Occurred()) {
        return NULL;
    }
    if (task != NULL) {
        PyObject *prefix = PyObject_GetAttr(task, self->prefix);
        if (prefix == NULL) {
            return NULL;
        }
        found = PyDict_GetItemWithError(self->known, prefix);
        Py_XINCREF(found);
        Py_DECREF(prefix);
        if (found == NULL && PyErr_Occurred()) {
            return NULL;
        }
    }
    return found == NULL ? PyObject_CallFunctionObjArgs(self->make, key, NULL) : found;
}

static PyObject *
ranges_started(Ranges *self, PyObject *const *values, Py_ssize_t count)
{
    if (count != 3) {
        return PyErr_Format(PyExc_TypeError, "a start has 3 fields, not %zd", count);
    }
    int64_t sequence = PyLong_AsLongLong(values[0]), at = PyLong_AsLongLong(values[2]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    PyObject *attributes = attributes_of(self, values[1]);
    PyObject *payload = attributes == NULL ? NULL : PyLong_FromLongLong(self->base + sequence);
    if (payload == NULL || PyObject_SetAttr(attributes, self->payload, payload) < 0) {
        Py_XDECREF(attributes);
        Py_XDECREF(payload);
        return NULL;
    }
    Py_DECREF(payload);
    /* Read here, where only the call lies between: 10 us at most (p99) off the range's own start, in
     * place of 100 and more with all of the above in between (measured). */
    if (at == 0) {
        at = monotonic_ns();
    }
    PyObject *done = PyObject_CallFunctionObjArgs(self->push, attributes, NULL);
    Py_DECREF(attributes);
    if (done == NULL) {
        return NULL;
    }
    Py_DECREF(done);
    return PyLong_FromLongLong(at);
}

static PyObject *
ranges_stopped(Ranges *self, PyObject *const *values, Py_ssize_t count)
{
    return PyObject_CallNoArgs(self->pop);
}

static PyMethodDef ranges_methods[] = {
    {"started", (PyCFunction)(void (*)(void))ranges_started, METH_FASTCALL,
     "Begin a task's range: number, key, time or 0; gives the time."},
    {"stopped", (PyCFunction)(void (*)(void))ranges_stopped, METH_FASTCALL,
     "End the range that was begun last in this thread."},
    {NULL}};

static PyType_Slot ranges_slots[] = {
    {Py_tp_doc, "Ranges: NVTX ranges around the executions of one thread, which nest."},
    {Py_tp_dealloc, ranges_dealloc},
    {Py_tp_traverse, ranges_traverse},
    {Py_tp_clear, ranges_clear},
    {Py_tp_methods, ranges_methods},
    {0}};

static PyType_Spec ranges_spec = {
    "dasf_hpc.profile._recorder.Ranges", sizeof(Ranges), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, ranges_slots};

/* ------------------------------------------------------------------ the module */

typedef struct {
    PyTypeObject *recorder, *transitions, *listener, *thread, *texts, *ranges;
} State;

static PyObject *
module_listen(PyObject *module, PyObject *args)
{
    State *state = PyModule_GetState(module);
    PyObject *append, *steps, *tasks, *ids, *seen, *activities, *define, *other, *failed;
    PyObject *transitions, *edges, *keys;
    if (!PyArg_ParseTuple(
            args, "OO!O!O!O!O!O!O!O!OOO", &append, &PyDict_Type, &steps, &PyDict_Type, &tasks,
            &PyDict_Type, &ids, &PySet_Type, &seen, &PyDict_Type, &activities,
            state->transitions, &transitions, state->recorder, &edges, state->texts, &keys, &define,
            &other, &failed)) {
        return NULL;
    }
    if (strcmp(((Recorder *)edges)->codes, "II") != 0 || ((Recorder *)edges)->timed) {
        PyErr_SetString(PyExc_ValueError, "edges are pairs of ids");
        return NULL;
    }
    PyTypeObject *type = state->listener;
    Listener *self = (Listener *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->append = Py_NewRef(append);
    self->steps = Py_NewRef(steps);
    self->tasks = Py_NewRef(tasks);
    self->ids = Py_NewRef(ids);
    self->seen = Py_NewRef(seen);
    self->activities = Py_NewRef(activities);
    self->define = Py_NewRef(define);
    self->other = Py_NewRef(other);
    self->failed = Py_NewRef(failed);
    self->transitions = (Transitions *)Py_NewRef(transitions);
    self->edges = (Recorder *)Py_NewRef(edges);
    self->keys = (Texts *)Py_NewRef(keys);
    self->dependencies = PyUnicode_InternFromString("dependencies");
    self->key = PyUnicode_InternFromString("key");
    self->startstops = PyUnicode_InternFromString("startstops");
    if (self->dependencies == NULL || self->key == NULL || self->startstops == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyObject *
module_thread(PyObject *module, PyObject *args)
{
    State *state = PyModule_GetState(module);
    PyObject *starts, *stops, *ids, *seen, *results, *unknown, *ended, *lease;
    unsigned int thread;
    if (!PyArg_ParseTuple(
            args, "O!O!O!O!O!OOOI", state->recorder, &starts, state->recorder, &stops,
            &PyDict_Type, &ids, &PySet_Type, &seen, &PyDict_Type, &results, &unknown, &ended,
            &lease, &thread)) {
        return NULL;
    }
    if (strcmp(((Recorder *)starts)->codes, "IIII") != 0 || !((Recorder *)starts)->timed ||
        strcmp(((Recorder *)stops)->codes, "IIIIQ") != 0 || !((Recorder *)stops)->timed) {
        PyErr_SetString(PyExc_ValueError, "no recorders of starts and stops");
        return NULL;
    }
    PyTypeObject *type = state->thread;
    Thread *self = (Thread *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->starts = (Recorder *)Py_NewRef(starts);
    self->stops = (Recorder *)Py_NewRef(stops);
    self->ids = Py_NewRef(ids);
    self->seen = Py_NewRef(seen);
    self->results = Py_NewRef(results);
    self->unknown = Py_NewRef(unknown);
    self->ended = Py_NewRef(ended);
    self->lease = Py_NewRef(lease);
    self->thread = thread;
    self->finished = PyUnicode_InternFromString("task-finished");
    self->op = PyUnicode_InternFromString("op");
    self->result = PyUnicode_InternFromString("result");
    self->nbytes = PyUnicode_InternFromString("nbytes");
    if (self->finished == NULL || self->op == NULL || self->result == NULL ||
        self->nbytes == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyObject *
module_ranges(PyObject *module, PyObject *args)
{
    State *state = PyModule_GetState(module);
    PyObject *tasks, *known, *make, *push, *pop;
    long long base;
    if (!PyArg_ParseTuple(
            args, "O!O!LOOO", &PyDict_Type, &tasks, &PyDict_Type, &known, &base, &make, &push,
            &pop)) {
        return NULL;
    }
    PyTypeObject *type = state->ranges;
    Ranges *self = (Ranges *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->tasks = Py_NewRef(tasks);
    self->known = Py_NewRef(known);
    self->make = Py_NewRef(make);
    self->push = Py_NewRef(push);
    self->pop = Py_NewRef(pop);
    self->base = base;
    self->prefix = PyUnicode_InternFromString("prefix");
    self->payload = PyUnicode_InternFromString("payload");
    if (self->prefix == NULL || self->payload == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyMethodDef module_methods[] = {
    {"listen", module_listen, METH_VARARGS,
     "listen(append, steps, tasks, ids, seen, activities, transitions, edges, keys, define, other, "
     "failed): give a Listener."},
    {"thread", module_thread, METH_VARARGS,
     "thread(starts, stops, ids, seen, results, unknown, ended, lease, thread): give a Thread."},
    {"ranges", module_ranges, METH_VARARGS,
     "ranges(tasks, known, base, make, push, pop): give a Ranges."},
    {NULL}};

static PyTypeObject *
add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && PyModule_AddType(module, (PyTypeObject *)type) < 0) {
        Py_CLEAR(type);
    }
    return (PyTypeObject *)type;
}

static int
module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    state->recorder = add_type(module, &recorder_spec);
    state->transitions = add_type(module, &transitions_spec);
    state->listener = add_type(module, &listener_spec);
    state->thread = add_type(module, &thread_spec);
    state->texts = add_type(module, &texts_spec);
    state->ranges = add_type(module, &ranges_spec);
    return PyErr_Occurred() ? -1 : 0;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->recorder);
    Py_VISIT(state->transitions);
    Py_VISIT(state->listener);
    Py_VISIT(state->thread);
    Py_VISIT(state->texts);
    Py_VISIT(state->ranges);
    return 0;
}

static int
module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->recorder);
    Py_CLEAR(state->transitions);
    Py_CLEAR(state->listener);
    Py_CLEAR(state->thread);
    Py_CLEAR(state->texts);
    Py_CLEAR(state->ranges);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0}};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT, "_recorder", "What is called for every task, see _recorder.c.",
    sizeof(State), module_methods, module_slots, module_traverse, module_clear, NULL};

PyMODINIT_FUNC
PyInit__recorder(void)
{
    return PyModuleDef_Init(&module_def);
}
