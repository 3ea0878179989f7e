# Who may do what. Google refuses to overwrite to whoever has no storage.objects.delete, so that the writer can only add.

locals {
  # A listing names no object, but a prefix.
  within_prefix = "resource.name.startsWith(${jsonencode(local.objects)}) || api.getAttribute(\"storage.googleapis.com/objectListPrefix\", \"\").startsWith(${jsonencode(local.root)})"

  # A motion photo's video ends so itself, and so does the folder of its versions.
  no_original = "!resource.name.endsWith(${jsonencode(local.kept_suffix)}) && resource.name.extract(${jsonencode("${local.kept_suffix}/{version}")}) == \"\""
  removable   = join(" || ", [for prefix in local.removed : "resource.name.startsWith(${jsonencode("${local.objects}${prefix}")})"])
}

resource "google_service_account" "writer" {
  project      = var.project
  account_id   = var.service_account_prefix
  display_name = "immich-backup"
  description  = "Creates, reads and lists objects of gs://${var.bucket}; cannot overwrite or delete"
}

resource "google_service_account" "pruner" {
  project      = var.project
  account_id   = "${var.service_account_prefix}-prune"
  display_name = "immich-backup prune"
  description  = "Removes dumps, manifests and derived files of gs://${var.bucket} that nothing needs"
}

resource "google_storage_bucket_iam_member" "writer" {
  for_each = toset(["roles/storage.objectCreator", "roles/storage.objectViewer"])

  bucket = google_storage_bucket.repository.name
  role   = each.value
  member = google_service_account.writer.member

  dynamic "condition" {
    for_each = var.prefix == "" ? [] : [local.within_prefix]
    content {
      title      = "immich-backup"
      expression = condition.value
    }
  }
}

resource "google_storage_bucket_iam_member" "pruner_reads" {
  bucket = google_storage_bucket.repository.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.pruner.member

  dynamic "condition" {
    for_each = var.prefix == "" ? [] : [local.within_prefix]
    content {
      title      = "immich-backup"
      expression = condition.value
    }
  }
}

# What it removes it writes to the log first. It may create where it may not remove, and the other way round, and so overwrite nothing.
resource "google_storage_bucket_iam_member" "pruner_logs" {
  bucket = google_storage_bucket.repository.name
  role   = "roles/storage.objectCreator"
  member = google_service_account.pruner.member

  condition {
    title      = "immich-backup-log"
    expression = "resource.name.startsWith(${jsonencode("${local.objects}log/")}) || resource.name == ${jsonencode("${local.objects}format.json")}"
  }
}

# No role of Google's own has this one right alone.
resource "google_project_iam_custom_role" "pruner" {
  project     = var.project
  role_id     = "${replace(var.service_account_prefix, "-", "_")}_prune"
  title       = "immich-backup prune"
  description = "Removes objects; granted for some prefixes of one bucket only"
  permissions = ["storage.objects.delete"]
}

resource "google_storage_bucket_iam_member" "pruner_removes" {
  bucket = google_storage_bucket.repository.name
  role   = google_project_iam_custom_role.pruner.name
  member = google_service_account.pruner.member

  condition {
    title      = "immich-backup-prune"
    expression = "(${local.removable}) && ${local.no_original}"
  }
}

resource "google_service_account_iam_member" "workload" {
  for_each = var.workload_identity ? {
    "immich-backup"       = google_service_account.writer.name
    "immich-backup-prune" = google_service_account.pruner.name
  } : {}

  service_account_id = each.value
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${var.project}.svc.id.goog[${var.namespace}/${each.key}]"
}
