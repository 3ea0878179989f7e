output "repository" {
  description = "What --repository takes."
  value       = "gs://${google_storage_bucket.repository.name}${var.prefix == "" ? "" : "/${var.prefix}"}"
}

output "environment" {
  description = "What all commands find in their environment."
  value = {
    IMMICH_BACKUP_REPOSITORY    = "gs://${google_storage_bucket.repository.name}${var.prefix == "" ? "" : "/${var.prefix}"}"
    IMMICH_BACKUP_STORAGE_CLASS = var.storage_class
  }
}

output "service_accounts" {
  description = "E-mail addresses of the two service accounts, by the name of the Kubernetes service account that acts as it."
  value = {
    "immich-backup"       = google_service_account.writer.email
    "immich-backup-prune" = google_service_account.pruner.email
  }
}

output "kubernetes" {
  description = "Kubernetes service accounts with workload identity, for an overlay; empty without it."
  value = !var.workload_identity ? "" : join("---\n", [for name, account in {
    "immich-backup"       = google_service_account.writer
    "immich-backup-prune" = google_service_account.pruner
    } : yamlencode({
      apiVersion = "v1"
      kind       = "ServiceAccount"
      metadata = {
        name        = name
        namespace   = var.namespace
        labels      = { app = "immich-backup" }
        annotations = { "iam.gke.io/gcp-service-account" = account.email }
      }
  })])
}

output "secret" {
  description = "What the Kubernetes secret `backup-secrets` takes. With workload identity it needs no credentials; else put the key of the output `keys` beside it as GCS_CREDENTIALS."
  value = {
    GCS_BUCKET = "${google_storage_bucket.repository.name}${var.prefix == "" ? "" : "/${var.prefix}"}"
  }
}

output "keys" {
  description = "Commands that make keys of the service accounts, for clusters elsewhere. Terraform makes none: its state would hold them."
  value = var.workload_identity ? {} : {
    for name, account in {
      "immich-backup"       = google_service_account.writer
      "immich-backup-prune" = google_service_account.pruner
    } : name => "gcloud iam service-accounts keys create ${name}.json --project ${var.project} --iam-account ${account.email}"
  }
}
