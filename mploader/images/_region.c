/* Decodes a rectangle of a JPEG, and no more of it than that rectangle needs.

   Optional: built where the headers of libjpeg-turbo are found (see setup.py), and jpeg.py does without it elsewhere.
   The rows above the rectangle are read without being transformed, those below not at all, and to its sides only whole
   blocks are transformed. The pixels are those that a full decode gives, to the bit: a block on each side more than
   asked for is decoded, because the upsampling of colours looks at neighbours.

   libjpeg-turbo's own account of the functions used: "Partial image decompression" in its libjpeg.txt. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#ifndef LIBJPEG_TURBO_VERSION_NUMBER
#error "libjpeg-turbo 1.5 or later is needed: other libjpegs cannot skip"
#endif

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf caller;
    char text[JMSG_LENGTH_MAX];
} Errors;

typedef struct {
    unsigned int top, left, height, width; /* in pixels of the scaled image */
} Region;

static void leave(j_common_ptr info)
{
    Errors *errors = (Errors *)info->err;
    errors->base.format_message(info, errors->text);
    longjmp(errors->caller, 1);
}

/* A warning (a negative level) means that pixels are made up. It is for the caller to judge, with all data. */
static void leave_on_warning(j_common_ptr info, int level)
{
    if (level < 0)
        leave(info);
}

static int fits(const struct jpeg_decompress_struct *info, const Region *region)
{
    return region->height > 0 && region->width > 0 && region->top < info->output_height &&
           region->left < info->output_width && region->height <= info->output_height - region->top &&
           region->width <= info->output_width - region->left;
}

/* Returns 0, or -1 with a text in errors. Runs without Python's lock. */
static int decode_region(const unsigned char *data, size_t size, int eighths, const Region *region,
                         unsigned char *pixels, Errors *errors)
{
    struct jpeg_decompress_struct info;
    unsigned char *volatile line = NULL;
    const size_t row_bytes = 3 * (size_t)region->width;

    info.err = jpeg_std_error(&errors->base);
    errors->base.error_exit = leave;
    errors->base.emit_message = leave_on_warning;
    if (setjmp(errors->caller)) {
        jpeg_destroy_decompress(&info);
        PyMem_RawFree(line);
        return -1;
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, (unsigned char *)data, (unsigned long)size);
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_RGB;
    info.scale_num = (unsigned int)eighths;
    info.scale_denom = 8;
    jpeg_start_decompress(&info);
    if (!fits(&info, region)) {
        jpeg_destroy_decompress(&info);
        snprintf(errors->text, sizeof errors->text, "the image has %u x %u pixels at this scale: the region is outside",
                 info.output_width, info.output_height);
        return -1;
    }

    const JDIMENSION block = (JDIMENSION)(info.max_h_samp_factor * eighths);
    JDIMENSION start = region->left > block ? region->left - block : 0;
    const JDIMENSION end = region->left + region->width;
    JDIMENSION columns = (info.output_width - end > block ? end + block : info.output_width) - start;
    jpeg_crop_scanline(&info, &start, &columns); /* moves both to the borders of blocks */
    line = PyMem_RawMalloc(3 * (size_t)columns);
    if (line == NULL) {
        jpeg_destroy_decompress(&info);
        snprintf(errors->text, sizeof errors->text, "no memory for a row");
        return -1;
    }
    if (region->top > 0)
        jpeg_skip_scanlines(&info, region->top);
    while (info.output_scanline < region->top + region->height) {
        JSAMPROW rows[1] = {line};
        jpeg_read_scanlines(&info, rows, 1);
        memcpy(pixels, line + 3 * (size_t)(region->left - start), row_bytes);
        pixels += row_bytes;
    }
    jpeg_destroy_decompress(&info); /* what lies below is not read */
    PyMem_RawFree(line);
    return 0;
}

static PyObject *decode(PyObject *self, PyObject *args)
{
    Py_buffer data, pixels;
    Region region;
    Errors errors;
    int eighths, failed;
    PyObject *result = NULL;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*iIIIIw*", &data, &eighths, &region.top, &region.left, &region.height, &region.width,
                          &pixels))
        return NULL;
    if (eighths < 1 || eighths > 8 ||
        (unsigned long long)pixels.len != 3ULL * region.height * region.width) {
        PyErr_SetString(PyExc_ValueError, "eighths must be 1 to 8, and pixels must hold height x width x 3 bytes");
    } else {
        Py_BEGIN_ALLOW_THREADS
        failed = decode_region(data.buf, (size_t)data.len, eighths, &region, pixels.buf, &errors);
        Py_END_ALLOW_THREADS
        if (failed)
            PyErr_SetString(PyExc_ValueError, errors.text);
        else
            result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&pixels);
    return result;
}

static PyMethodDef methods[] = {
    {"decode", decode, METH_VARARGS,
     "decode(data, eighths, top, left, height, width, pixels): see _region.pyi"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_region", "Decodes a rectangle of a JPEG.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__region(void)
{
    return PyModuleDef_Init(&module);
}
